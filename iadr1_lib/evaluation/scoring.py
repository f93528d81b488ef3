from iadr1_lib.evaluation import *  # noqa: F403
