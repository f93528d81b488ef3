"""Models behind an API, as teacher and as predictor.

Samples come in, with the truth for a teacher; drafts of reasoning or rows of predictions.jsonl go out, and every reply
that was paid for is kept. Begin with `client.Remote`, which asks; `providers` has what is sent and received.
"""

from iadr1_lib.remote.client import Remote
from iadr1_lib.remote.predictor import endpoint_named, predict_remote
from iadr1_lib.remote.providers import Endpoint, Reply, Request, encode_image
from iadr1_lib.remote.teacher import ApiTeacher, RecordingTeacher, ReplayTeacher
