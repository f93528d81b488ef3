"""The old name of this room's exports, until every caller imports from `iadr1_lib.evaluation`."""

from functools import partial

from iadr1_lib.evaluation import *  # noqa: F403
from iadr1_lib.evaluation import interval_text

level, signed = interval_text, partial(interval_text, signed=True)
