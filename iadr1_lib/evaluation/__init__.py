"""Models are asked here, and their answers scored.

In come samples and a model's folder; out go a file of predictions (one JSON line per picture) and tables of metrics
with 95 % intervals. Begin with `read_answer` and `score`; asking a model is in the module `prediction`, which loads
torch. Files in reading order: protocols, prediction, prediction_file, parsers, metrics, intervals, comparison.
"""

from iadr1_lib.evaluation.agreement import agreement, as_reasoned, grounding
from iadr1_lib.evaluation.comparison import (
    PAIRED,
    compare,
    paired_difference,
    pairwise_tests,
    protocol_share,
    require_one_protocol,
)
from iadr1_lib.evaluation.intervals import MEAN, SEED_RANGE, interval_text, metric_rows
from iadr1_lib.evaluation.metrics import METRICS, balanced_accuracy, judge, parser_table, ranking, score, unknown_types
from iadr1_lib.evaluation.one_shot import lending, references
from iadr1_lib.evaluation.parsers import PARSERS, read_answer
from iadr1_lib.evaluation.prediction_file import PREDICTION_KEYS, finished_images, prediction_row, read_predictions
from iadr1_lib.evaluation.protocols import COURSE, NAMES, PROMPTS, Protocol, prompt_messages, protocol
from iadr1_lib.evaluation.sanity import BASELINES, label_only_baselines
