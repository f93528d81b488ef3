"""What a model that is half sure earns by Yes and by No: a mode should favour neither."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

from iadr1_lib.answer import build_answer, build_solution
from iadr1_lib.expert_ad import Facts, short_reasoning
from iadr1_lib.rewards.functions import total_reward


class HalfSure(NamedTuple):
    """Expected total of each answer, and its expected advantage after group scaling."""

    yes: float
    no: float
    yes_advantage: float
    no_advantage: float


def half_sure_payoff(
    location_accuracy: float,
    type_accuracy: float,
    mode: str = "strict",
    supported_yes: float = 1.0,
    supported_no: float = 1.0,
) -> HalfSure:
    """What Yes and No earn on an image that is defective with probability one half, answers well formed.

    A Yes names the place rightly with ``location_accuracy`` and the type with ``type_accuracy`` (a wrong type
    is of the other group, worth 0), independently; its reasoning supports its tags with ``supported_yes`` and that of
    a No with ``supported_no``, which counts in ``grounded`` alone. The totals come from the mode's own functions and
    weights.

    Before scaling, an expectation is the mean over a normal and a defective image. In ``strict``, with t the mean of
    the two accuracies, Yes earns (2 + t) / 2 and No (2 + 1/2) / 2: the same where tags are half right. In ``grounded``
    one of the two points is paid with the chance that the reasoning supports the answer.

    After scaling, each image is a group of its own, here a large one with as many Yes as No: the advantage is
    (total - mean) / (deviation + 1e-4), averaged over the two images. Tags that are sometimes right widen the defective
    image's deviation, so that a right Yes gains a little less than a right No: a small pull to No remains in every
    mode, largest in ``paper``, where tags weigh most.
    """
    places = {"left": location_accuracy, "right": 1 - location_accuracy}
    kinds = {"scratch": type_accuracy, "hole": 1 - type_accuracy}
    yes, no = {}, {}
    for sound, yes_share, no_share in (
        (True, supported_yes, supported_no),
        (False, 1 - supported_yes, 1 - supported_no),
    ):
        no[build_answer(_reasoning(Facts("no"), sound), "no")] = no_share
        for place, kind in product(places, kinds):
            facts = Facts("yes", place, kind, tone="dark")
            answer = build_answer(_reasoning(facts, sound), "yes", place, kind)
            yes[answer] = yes_share * places[place] * kinds[kind]
    yes, no = ({text: chance for text, chance in answers.items() if chance} for answers in (yes, no))
    solutions = build_solution("yes", "left", "scratch"), build_solution("no")
    defective, normal = (_payoff_on_one_image(yes, no, solution, mode) for solution in solutions)
    return HalfSure(*((a + b) / 2 for a, b in zip(defective, normal, strict=True)))


def _reasoning(facts: Facts, sound: bool) -> str:
    return short_reasoning(facts, random.Random(0)) if sound else "…"


def _payoff_on_one_image(yes: Mapping[str, float], no: Mapping[str, float], solution: str, mode: str) -> HalfSure:
    """`yes` and `no` hold the answers with the chance of each."""
    totals = {text: total_reward(text, solution, mode) for text in (*yes, *no)}
    means = [sum(chance * totals[text] for text, chance in answers.items()) for answers in (yes, no)]
    square = sum(chance * totals[text] ** 2 for text, chance in (*yes.items(), *no.items())) / 2
    mean = sum(means) / 2
    deviation = math.sqrt(max(0.0, square - mean**2)) + 1e-4
    return HalfSure(*means, *((own - mean) / deviation for own in means))
