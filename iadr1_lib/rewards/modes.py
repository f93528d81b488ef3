"""The modes of the rewards: each is one set of choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mode:
    """Where the modes differ: each field is one choice, by default that of ``strict``."""

    whole_output: bool = True  # consistency: the whole output is the pattern (else tags in order, among anything)
    grounded: bool = False  # consistency: the reasoning supports the tags, too
    tags_cross_lines: bool = True  # a pair may hold line ends (else such a pair is passed over)
    flat_tags: bool = True  # a repeated or nested pair is worth nothing (else the first pair counts)
    whole_words: bool = True  # in places and types; a text without a place has none (else it is the centre)
    flat_levels: bool = False  # type similarity in the paper's flat steps (else graded by confidence)
    by_meaning: bool = False  # type similarity is that of sentence embeddings (else of words in the table)
    needs_right_answer: bool = True  # location and type are paid only under a right answer
    # What location and type each pay a well-formed right No, which has no tags to be right about: a right Yes earns
    # 0 to 1 for each, so the midpoint. See half_sure_payoff.
    for_right_no: float = 0.5
    summed: bool = False  # accuracy is answer + (type + location) / 2
    # What the trainer gets, in order, and how much each counts. Half weights keep a right answer with wrong tags (2 of
    # 3) well above a wrong one (0). Not hashed: a dict cannot be, and what is cached per mode does not depend on it.
    weights: Mapping[str, float] = field(
        default_factory=lambda: {"consistency": 1.0, "accuracy": 1.0, "location": 0.5, "type": 0.5}, hash=False
    )


MODES: dict[str, Mode] = {
    "released": Mode(
        whole_output=False,
        tags_cross_lines=False,
        flat_tags=False,
        whole_words=False,
        needs_right_answer=False,
        for_right_no=0.0,
        summed=True,
        weights={"consistency": 1.0, "accuracy": 1.0},
    ),
    "paper": Mode(
        flat_tags=False,
        whole_words=False,
        flat_levels=True,
        for_right_no=0.0,
        weights=dict.fromkeys(("consistency", "accuracy", "location", "type"), 1.0),
    ),
    "strict": Mode(),
    "semantic": Mode(by_meaning=True),
    "grounded": Mode(grounded=True),
}


def mode_named(name: str) -> Mode:
    """The Mode of that name; ValueError naming the choices."""
    if name not in MODES:
        raise ValueError(f"no reward mode is called {name!r}; choose from {', '.join(MODES)}")
    return MODES[name]
