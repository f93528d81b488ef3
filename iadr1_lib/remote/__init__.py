"""Models behind an API, as teacher and as predictor."""

from iadr1_lib.remote.client import Cost, Endpoint, Remote, Reply, Request, encode_image, known_price
from iadr1_lib.remote.predictor import endpoint_named, p_yes, predict_remote
from iadr1_lib.remote.teacher import ApiTeacher, ReplayTeacher, read_prompts, record_to

__all__ = [
    "ApiTeacher",
    "Cost",
    "Endpoint",
    "Remote",
    "ReplayTeacher",
    "Reply",
    "Request",
    "encode_image",
    "endpoint_named",
    "known_price",
    "p_yes",
    "predict_remote",
    "read_prompts",
    "record_to",
]
