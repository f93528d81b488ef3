"""The tagged answer: how it is built and read, the grid of places, the vocabulary of defects.

An inspected image is answered by one of two patterns (paper, section "Method"):

- normal:    ``<think>…</think><answer>No</answer>``
- defective: ``<think>…</think><location>…</location><type>…</type><answer>Yes</answer>``

Everything here is text and arrays; nothing knows of models or files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Label = Literal["yes", "no"]

QUESTION = "Are there any defects in the query image?"
DIRECT = "Answer without reasoning ."

TAG_NAMES = ("think", "location", "type", "answer")
TAGS = tuple(f"<{slash}{name}>" for name in TAG_NAMES for slash in ("", "/"))


# ------------------------------------------------------------------------------------------------ building


@dataclass(frozen=True)
class Answer:
    """What an output says; None where a tag is absent, location and type in lower case with single blanks."""

    answer: Label | None
    location: str | None
    type: str | None
    reasoning: str | None


def build_answer(reasoning: str, label: Label, location: str | None = None, defect_type: str | None = None) -> str:
    """The whole tagged answer, by the pattern of ``label``; ValueError as in ``build_solution``."""
    return f"<think>{reasoning.strip()}</think>" + build_solution(label, location, defect_type)


def build_solution(label: Label, location: str | None = None, defect_type: str | None = None) -> str:
    """The tags without reasoning: the ``solution`` of the released SC-GRPO records.

    Raises ValueError if the label is neither yes nor no, if a Yes lacks its location or type, or a No has one.
    """
    if label == "no":
        if location or defect_type:
            raise ValueError(f"a normal image has no location and no type, got {location!r}, {defect_type!r}")
        return "<answer>No</answer>"
    if label != "yes":
        raise ValueError(f"label must be 'yes' or 'no', got {label!r}")
    if not location or not defect_type:
        raise ValueError(f"a defective image needs a location and a type, got {location!r}, {defect_type!r}")
    return f"<location>{location}</location><type>{defect_type}</type><answer>Yes</answer>"


# ------------------------------------------------------------------------------------------------ lenient reading

# A tag as models write it: in any case, with blanks inside; some call it <thinking>.
_LOOSE_TAG = re.compile(rf"<(?P<end>\s*/)?\s*(?P<name>{'|'.join(TAG_NAMES)})(?:(?<=think)ing)?\s*>", re.IGNORECASE)
_HALF_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}  # letters and marks of East Asian full width
# Yes or no that is not part of a longer Latin word; letters of other scripts may touch it.
_VERDICT = re.compile(r"(?<![a-z0-9\u00c0-\u024f])(?:yes|no)(?![a-z0-9\u00c0-\u024f])", re.IGNORECASE)


class _Piece(NamedTuple):
    """The text between two tags; `tag` is the name of the one before it, "" at the beginning."""

    tag: str
    ends: bool  # the tag before it is a closing one
    text: str


def _pieces(text: str) -> Iterator[_Piece]:
    start, name, ends = 0, "", False
    for tag in _LOOSE_TAG.finditer(text):
        yield _Piece(name, ends, text[start : tag.start()])
        start, name, ends = tag.end(), tag["name"].lower(), bool(tag["end"])
    yield _Piece(name, ends, text[start:])


def parse_answer(text: str) -> Answer:
    """Lenient reading of an output, for evaluation: tags in any case, their end missing or not.

    - The last `<answer>` that holds a verdict decides, whether the reasoning before it was closed or not.
    - Else only what follows `</think>` counts, places and types left out; with a reasoning that was opened and never
      closed there is no answer, since "there is no stain" in it decides nothing.
    - A text without any reasoning is read as a whole.

    A verdict is the whole word yes or no, if the other one does not occur; where both do, the one that the text begins
    with ("Yes, no doubt") or ends with ("No doubt: yes"). Of location and type the last that is not empty counts.
    """
    pieces = list(_pieces(text))
    inside = {name: [p.text for p in pieces if p.tag == name and not p.ends and p.text.strip()] for name in TAG_NAMES}
    location, kind = (tidy(inside[name][-1]) if inside[name] else None for name in ("location", "type"))
    verdicts = [verdict for verdict in map(_verdict, inside["answer"]) if verdict]
    return Answer(verdicts[-1] if verdicts else _verdict_outside_tags(pieces), location, kind, _reasoning(text))


def _verdict_outside_tags(pieces: list[_Piece]) -> Label | None:
    """The verdict of what stands outside reasoning, location and type."""
    closed = [number for number, piece in enumerate(pieces) if piece.tag == "think" and piece.ends]
    if not closed and any(piece.tag == "think" for piece in pieces):
        return None
    rest = pieces[closed[-1] :] if closed else pieces
    return _verdict(" ".join(piece.text for piece in rest if piece.ends or piece.tag in ("", "answer")))


def _verdict(text: str) -> Label | None:
    text = text.translate(_HALF_WIDTH)
    words = list(_VERDICT.finditer(text))
    labels: list[Label] = ["yes" if word.group()[0] in "yY" else "no" for word in words]
    if len(set(labels)) < 2:
        return labels[0] if labels else None
    before, after = text[: words[0].start()], text[words[0].end() :]
    if not _has_word(before) and not re.match(r"\W*(?:/|or\b|and\b)", after):
        return labels[0]
    before, after = text[: words[-1].start()].rstrip(" *_\"'\n"), text[words[-1].end() :]
    return labels[-1] if before.endswith((":", ",", ".", ";", "!")) and not _has_word(after) else None


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _reasoning(text: str) -> str | None:
    """What stands between the first `<think>` and the first end of it, other tags included; None if it has no end."""
    tags = [tag for tag in _LOOSE_TAG.finditer(text) if tag["name"].lower() == "think"]
    begin = next((tag for tag in tags if not tag["end"]), None)
    end = next((tag for tag in tags if tag["end"] and begin and tag.start() >= begin.end()), None)
    return text[begin.end() : end.start()].strip() if begin and end else None


def tidy(text: str) -> str:
    """Lower case, no white space at the ends, single blanks inside."""
    return " ".join(text.lower().split())


# ------------------------------------------------------------------------------------------------ exact reading

_TAG = re.compile("|".join(TAGS))
# Text without any of the eight tags: runs of non-"<", or a "<" that opens no tag. Linear in the text's length.
_INSIDE = rf"[^<]*(?:<(?!(?:{'|'.join(tag[1:] for tag in TAGS)}))[^<]*)*"
_PATTERN_YES = re.compile(
    rf"\s*<think>{_INSIDE}</think>\s*<location>{_INSIDE}</location>\s*<type>{_INSIDE}</type>"
    r"\s*<answer>\s*[Yy][Ee][Ss]\s*</answer>\s*"
)
_PATTERN_NO = re.compile(rf"\s*<think>{_INSIDE}</think>\s*<answer>\s*[Nn][Oo]\s*</answer>\s*")


def matches_format(text: str) -> Label | None:
    """Which of the two patterns the *whole* output is: "yes", "no" or None.

    White space is free at the ends, between tags and around yes/no; yes and no in any case. Text outside the
    tags, a tag inside a pair, a repeated tag, a Yes without location and type, a No with them: None.
    """
    if _PATTERN_YES.fullmatch(text):
        return "yes"
    return "no" if _PATTERN_NO.fullmatch(text) else None


def first_pairs(text: str, cross_lines: bool = True) -> dict[str, str]:
    """What the first ``<tag>…</tag>`` of each of location, type and answer holds, stripped; absent ones are left out.

    This is how the released code reads, which passes over a pair that holds a line end (``cross_lines`` False).
    """
    lines = [text] if cross_lines else text.split("\n")
    inside = {}
    for name in TAG_NAMES[1:]:
        for line in lines:  # found by search, since a pattern would go back for each unclosed tag
            _, opening, rest = line.partition(f"<{name}>")
            content, closing, _ = rest.partition(f"</{name}>")
            if opening and closing:
                inside[name] = content.strip()
                break
    return inside


def last_pairs(text: str) -> dict[str, str]:
    """As `first_pairs`, for the last pair of each tag."""
    inside = {name: re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL) for name in TAG_NAMES[1:]}
    return {name: contents[-1].strip() for name, contents in inside.items() if contents}


def flat_pairs(text: str) -> dict[str, str]:
    """What each pair holds, stripped, that occurs once, holds no tag and stands inside no other pair."""
    marks = list(_TAG.finditer(text))
    tags = [mark.group() for mark in marks]
    counts = Counter(tags)
    inside = {}
    for at, (opening, closing) in enumerate(zip(marks, marks[1:], strict=False)):
        name = tags[at][1:-1]
        once = counts[f"<{name}>"] == 1 == counts[f"</{name}>"]
        if once and tags[at + 1] == f"</{name}>" and not _stands_inside_a_pair(tags[:at], tags[at + 2 :]):
            inside[name] = text[opening.end() : closing.start()].strip()
    return inside


def _stands_inside_a_pair(before: list[str], after: list[str]) -> bool:
    """Whether a tag is open after ``before`` and closes in ``after``."""
    for name in TAG_NAMES:
        nearest = next((tag for tag in reversed(before) if tag.strip("</>") == name), "")
        if nearest == f"<{name}>" and f"</{name}>" in after:
            return True
    return False


# ------------------------------------------------------------------------------------------------ the grid of places

GRID = 3  # rows and columns of the grid of places, unless another is asked for (paper: the best of those it tried)
# Names of rows and columns in a grid of 1 to 5; the middle one has no name, and the middle of both is the center.
_ROW_NAMES: dict[int, tuple[str, ...]] = {
    1: ("",),
    2: ("top", "bottom"),
    3: ("top", "", "bottom"),
    4: ("top", "upper", "lower", "bottom"),
    5: ("top", "upper", "", "lower", "bottom"),
}
_COLUMN_NAMES: dict[int, tuple[str, ...]] = {
    1: ("",),
    2: ("left", "right"),
    3: ("left", "", "right"),
    4: ("far left", "left", "right", "far right"),
    5: ("far left", "left", "", "right", "far right"),
}

# Words that place something. "middle left" is the left cell: a centre word adds nothing where a direction is given.
_CENTRE_WORDS = frozenset({"center", "centre", "central", "middle"})
_ROW_WORDS = ("top", "upper", "bottom", "lower")
_COLUMN_WORDS = ("left", "right")


def cell_names(grid: int = GRID) -> tuple[str, ...]:
    """The ``grid`` × ``grid`` cells row by row, grid 1 to 5: CELLS for 3, "upper far left" and the like for 4 and 5."""
    if not 1 <= grid <= 5:
        raise ValueError(f"grid must be 1 to 5, got {grid}")
    pairs = product(_ROW_NAMES[grid], _COLUMN_NAMES[grid])
    return tuple(f"{row} {column}".strip() or "center" for row, column in pairs)


CELLS = cell_names()  # "top left", "top", … "center", … "bottom right"


def cell_of_point(x: float, y: float, width: float, height: float, grid: int = GRID) -> str:
    """The cell that holds the point (x to the right, y down, in pixels); ValueError outside the image."""
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"point ({x}, {y}) lies outside the image of {width} x {height} pixels")
    column, row = (min(int(at * grid / size), grid - 1) for at, size in ((x, width), (y, height)))
    return cell_names(grid)[row * grid + column]


def cell_of_mask(mask: NDArray[np.bool_], grid: int = GRID) -> str:
    """The cell of a defect, given its mask of H × W (anything non-zero is marked).

    It is the cell of the centroid of the largest connected patch (diagonal neighbours connect). One patch,
    since the centroid of two far spots lies between them, where nothing is. For the same reason, if the
    centroid of a bent patch (a ring, an L) falls in a cell without a pixel of the patch, the patch's pixel
    nearest the centroid counts: the answer is always a cell that holds marked pixels. Patches of equal size:
    the first in reading order. ValueError if nothing is marked.
    """
    marked = np.asarray(mask) != 0
    patches, count = ndimage.label(marked, structure=np.ones((3, 3)))
    if count == 0:
        raise ValueError("the mask marks no pixel, so the defect has no place")
    largest = int(np.argmax(np.bincount(patches.ravel())[1:])) + 1
    rows, columns = np.nonzero(patches == largest)
    height, width = marked.shape
    row, column = rows.mean(), columns.mean()
    cell = cell_of_point(column + 0.5, row + 0.5, width, height, grid)
    nearest = int(np.argmin((rows - row) ** 2 + (columns - column) ** 2))
    left, top, right, bottom = cell_box(cell, width, height, grid)
    if np.any((columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)):
        return cell
    return cell_of_point(columns[nearest] + 0.5, rows[nearest] + 0.5, width, height, grid)


def cell_box(cell: str, width: int, height: int, grid: int = GRID) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a cell in whole pixels, the last two excluded; ValueError if unknown."""
    names = cell_names(grid)
    if cell not in names:
        raise ValueError(f"no cell is called {cell!r}; choose from {', '.join(names)}")
    row, column = divmod(names.index(cell), grid)
    left, right = (round(step * width / grid) for step in (column, column + 1))
    top, bottom = (round(step * height / grid) for step in (row, row + 1))
    return left, top, right, bottom


@lru_cache(maxsize=4096)
def cell_of_words(text: str, grid: int = GRID) -> str | None:
    """The cell of the grid that words name ("in the upper-left corner" → "top left"), or None.

    Whole words only, so "copyright" names nothing. A text without a place names nothing either, and so does
    one that names opposite places ("left and right"): saying everything must not be right. With an even grid
    a name needs both directions, since there is no middle; with a grid of 1 every place is the one cell.
    """
    names = cell_names(grid)
    words = set(re.findall(r"[^\W_]+", text.lower()))
    if not words & {*_ROW_WORDS, *_COLUMN_WORDS, *_CENTRE_WORDS}:
        return None
    rows = {_row_of_word(word, grid) for word in _ROW_WORDS if word in words}
    columns = {_column_of_word(word, "far" in words, grid) for word in _COLUMN_WORDS if word in words}
    if len(rows) > 1 or len(columns) > 1:
        return None
    if grid % 2 == 0 and not (rows and columns):
        return None
    row, column = ((steps or {grid // 2}).pop() for steps in (rows, columns))
    return names[row * grid + column]


def _row_of_word(word: str, grid: int) -> int:
    """Row from 0 that a direction means; below 4 rows "upper" is "top" and "lower" is "bottom"."""
    inner = min(word in ("upper", "lower"), grid // 4)
    return inner if word in ("top", "upper") else grid - 1 - inner


def _column_of_word(word: str, far: bool, grid: int) -> int:
    """Column from 0 that a direction means; from 4 columns on, the outer ones are "far"."""
    inner = 0 if far else grid // 4
    return inner if word == "left" else grid - 1 - inner


_PLACE_WORD = "|".join((*_ROW_WORDS, *_COLUMN_WORDS, *sorted(_CENTRE_WORDS)))
# "lies on top" says how, not where.
_FAR = r"(?:far[\s-]+)?"  # the outer columns of finer grids
_PLACE_PHRASE = re.compile(
    rf"\b{_FAR}(?!(?<=\bon )top\b)(?:{_PLACE_WORD})(?:[\s-]+{_FAR}(?:{_PLACE_WORD}))*\b", re.IGNORECASE
)


def place_in_reasoning(reasoning: str, grid: int = GRID) -> str | None:
    """The cell that a running text names last (it looks around first and decides at the end), or None."""
    phrases = _PLACE_PHRASE.findall(reasoning)
    return cell_of_words(phrases[-1], grid) if phrases else None


# ------------------------------------------------------------------------------------------------ the vocabulary

# The eight categories of defects with their synonyms, in the table's order (paper, reward R_type; the words
# match Real-IAD's). The first four concern the surface, the last four the structure.
_TABLE = {
    "contamination": "surface contamination, stain, dirt, impurity, color anomaly",
    "presence of foreign objects": "foreign object, foreign body, debris, contaminant object, extraneous material, "
    "foreign element, foreign matter, unwanted object",
    "scratch": "surface scratch, scratch mark, linear scratch, score mark, linear anomaly",
    "missing parts": "missing part, surface notch, notch, gap, chip, surface discontinuity",
    "deformation": "shape distortion, warping, bending, twisting, shape deviation, geometric distortion, "
    "irregularity, bent component",
    "hole": "opening, perforation, puncture, cavity, void, aperture, penetration defect, through-hole",
    "damage": "structural damage, breakage, fracture, rupture, deterioration, material damage, surface damage",
    "abrasion": "wear, grinding damage, surface erosion, wear mark, surface wear",
}
SYNONYMS = {category: tuple(terms.split(", ")) for category, terms in _TABLE.items()}
DEFECT_TYPES = tuple(SYNONYMS)
SURFACE_TYPES, STRUCTURAL_TYPES = DEFECT_TYPES[:4], DEFECT_TYPES[4:]
# Every term of the table, the category's own name first, and its category.
CATEGORY_OF_TERM = {term: category for category, terms in SYNONYMS.items() for term in (category, *terms)}
# Everyday words that the paper's table lacks.
_MORE_TERMS = {"dent": "deformation", "bend": "deformation", "bent": "deformation", "crack": "damage"}


def term_forms(term: str) -> list[str]:
    """A term of the vocabulary in the singular and the plural, with blanks for hyphens: "cavity", "cavities"."""
    plain = term.replace("-", " ")
    return [plain, plain[:-1] + "ies"] if plain.endswith("y") else [plain, plain + "s", plain + "es"]


# Every form of every term, everyday words included, and its category.
CATEGORY_OF_FORM = {
    form: category for term, category in (CATEGORY_OF_TERM | _MORE_TERMS).items() for form in term_forms(term)
}
_FORM = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(CATEGORY_OF_FORM, key=len, reverse=True)))})\b")


def terms_in(text: str) -> list[str]:
    """The forms of CATEGORY_OF_FORM that occur in a text as whole words, in its order; longer ones first."""
    return _FORM.findall(tidy(re.sub("[-_]", " ", text)))


def category_of_words(text: str) -> str | None:
    """The defect category that a text names ("Stains.", "a stain" → "contamination"); None for none or several."""
    categories = {CATEGORY_OF_FORM[term] for term in terms_in(text)}
    return categories.pop() if len(categories) == 1 else None


def type_in_reasoning(reasoning: str) -> str | None:
    """The category that a running text names last, by its name or a synonym, plurals included, or None."""
    terms = terms_in(reasoning)
    return CATEGORY_OF_FORM[terms[-1]] if terms else None
