"""Building and reading tagged answers; places on the grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iadr1_lib.answer import (
    CELLS,
    DEFECT_TYPES,
    SYNONYMS,
    TAGS,
    Answer,
    build_answer,
    build_solution,
    category_of_words,
    cell_box,
    cell_names,
    cell_of_mask,
    cell_of_point,
    cell_of_words,
    matches_format,
    parse_answer,
    place_in_reasoning,
    type_in_reasoning,
)

NO = "<think>all fine</think><answer>No</answer>"
YES = "<think>a line</think><location>top left</location><type>scratch</type><answer>Yes</answer>"
PROSE = st.text().filter(lambda text: not any(tag in text for tag in TAGS))


@given(PROSE, st.sampled_from(CELLS), st.sampled_from(DEFECT_TYPES))
def test_what_is_built_is_read_back(reasoning, cell, kind):
    text = build_answer(reasoning, "yes", cell, kind)
    assert parse_answer(text) == Answer("yes", cell, kind, reasoning.strip())
    assert matches_format(text) == "yes"
    assert matches_format(build_answer(reasoning, "no")) == "no"


@pytest.mark.parametrize(
    "label, place, kind",
    [("yes", None, "scratch"), ("yes", "top", None), ("no", "top", None), ("maybe", None, None)],
)
def test_an_answer_that_fits_no_pattern_is_not_built(label, place, kind):
    with pytest.raises(ValueError):
        build_solution(label, place, kind)


@pytest.mark.parametrize(
    "text, label",
    [
        (NO, "no"),
        (YES, "yes"),
        ("\n" + YES.replace("><", ">\n <") + " \n", "yes"),
        (NO.replace("No", " nO\n"), "no"),
        (NO.replace("fine", "fine: 3 < 4 <b>\nreally"), "no"),
        ("So: " + NO, None),
        (NO + " Done.", None),
        (NO + NO, None),
        (NO.replace("fine", "<think>fine"), None),
        (NO.replace("fine", "<answer>Yes</answer>"), None),
        (NO.replace("No", "No."), None),
        (NO.replace("No", "Yes"), None),
        (YES.replace("Yes", "No"), None),
        (YES.replace("<type>scratch</type>", ""), None),
        (YES.replace("scratch", "<location>top</location>"), None),
        ("Yes", None),
        ("", None),
    ],
)
def test_only_the_whole_pattern_matches(text, label):
    assert matches_format(text) == label


@given(st.text())
def test_any_text_can_be_read(text):
    parse_answer(text)
    matches_format(text)
    assert cell_of_words(text) in {None, *CELLS}
    place_in_reasoning(text)
    type_in_reasoning(text)


def test_hostile_text_is_read_in_linear_time():
    for text in ("<think>" + "<" * 200_000, "<think>" + " <x>\n" * 100_000 + "</think>", " " * 200_000):
        assert matches_format(text) is None
        parse_answer(text + "<" + " " * 200_000 + "<answer>" * 20_000)


THOUGHT = "<think>There is no rust, but a scratch at the left.</think>"
CUT = "<think>There is no rust, but on the left I see a"


@pytest.mark.parametrize(
    "text, verdict",
    [
        (CUT, None),  # an opened reasoning decides nothing
        (CUT.upper(), None),
        ("<think>No stain so far.</think>", None),
        ("No stain so far.</think> Yes", "yes"),
        ("<thinking>No rust.</thinking>Yes", "yes"),
        ("Part \u2116 12 has a scratch", None),
        (THOUGHT + "<answer>Yes", "yes"),
        (THOUGHT + "<Answer>Yes</ANSWER>", "yes"),
        (THOUGHT + "<answer >Yes< / answer>", "yes"),
        (CUT + "<answer>Yes</answer>", "yes"),  # the reasoning was never closed
        (THOUGHT + "<type>no paint</type><answer></answer>", None),
        ("<think>I end with <answer></answer>.</think><answer>Yes</answer>", "yes"),
        ("<answer>No</answer> Wait. <answer>Yes</answer>", "yes"),
        ("<answer>Yes</answer> and so <answer></answer>", "yes"),
        (THOUGHT + "<answer>There is no doubt: yes</answer>", "yes"),
        (THOUGHT + "<answer>**Yes**, no doubt.</answer>", "yes"),
        (THOUGHT + "<answer>yes or no</answer>", None),
        (THOUGHT + "<answer>yes/no</answer>", None),
        (THOUGHT + "<answer>_No_</answer>", "no"),
        (THOUGHT + "<answer>Yes\u6709\u5212\u75d5\u3002</answer>", "yes"),
        (THOUGHT + "<answer>\uff39\uff45\uff53</answer>", "yes"),
        (THOUGHT + "<answer>Nothing, eyes, noise</answer>", None),
        ("No", "no"),
        ("yes, on the left", "yes"),
        ("There is no defect.", "no"),
        ("", None),
    ],
)
def test_the_verdict_is_never_read_out_of_the_reasoning(text, verdict):
    assert parse_answer(text).answer == verdict


@given(st.text(), st.sampled_from(["Yes", "no."]), st.sampled_from(["</answer>", ""]))
def test_whatever_stands_before_the_last_verdict_decides(before, word, end):
    assert parse_answer(f"{before}<answer>{word}{end}").answer == word.strip(".").lower()


def test_places_and_types_are_the_last_that_are_not_empty():
    text = "hm <location></location><location> Top\n Left</location><TYPE>Hole<answer>no</answer><type> "
    assert parse_answer(text) == Answer("no", "top left", "hole", None)


@pytest.mark.parametrize(
    "words, cell",
    [
        ("Upper-Left corner", "top left"),
        ("in the lower right quadrant", "bottom right"),
        ("middle left", "left"),
        ("the centre", "center"),
        *((words, None) for words in ("copyright area", "lefty", "unclear", "", "left and right")),
        ("top bottom left right center", None),
    ],
)
def test_places_are_whole_words(words, cell):
    assert cell_of_words(words) == cell


@given(st.integers(1, 5), st.integers(5, 300), st.integers(5, 300), st.floats(0, 0.999), st.floats(0, 0.999))
def test_cells_tile_the_image(grid, width, height, across, down):
    names = cell_names(grid)
    boxes = [cell_box(name, width, height, grid) for name in names]
    assert sum((r - x) * (b - y) for x, y, r, b in boxes) == width * height
    x, y = int(across * width), int(down * height)
    cell = cell_of_point(x + 0.5, y + 0.5, width, height, grid)
    left, top, right, bottom = cell_box(cell, width, height, grid)
    assert left - 1 <= x <= right and top - 1 <= y <= bottom  # half a pixel of rounding at a border


def test_every_cell_of_three_by_three_by_its_middle():
    for cell in CELLS:
        left, top, right, bottom = cell_box(cell, 96, 96)
        mask = np.zeros((96, 96), dtype=bool)
        mask[top + 5 : bottom - 5, left + 5 : right - 5] = True
        assert cell_of_mask(mask) == cell
        assert cell_of_words(cell) == cell


@pytest.mark.parametrize("grid", range(1, 6))
def test_words_of_every_grid_name_their_cell(grid):
    names = cell_names(grid)
    assert len(set(names)) == grid**2
    assert [cell_of_words(f"In the {name.upper()} .", grid) for name in names] == list(names)
    assert [place_in_reasoning(f"At the {name} . Fine .", grid) for name in names] == list(names)
    assert cell_of_words("somewhere", grid) is None


@pytest.mark.parametrize(
    "words, grid, cell",
    [
        ("left", 1, "center"),
        ("left", 2, None),  # an even grid has no middle row
        ("lower right corner", 2, "bottom right"),
        ("upper left", 4, "upper left"),
        ("top far left", 4, "top far left"),
        ("upper top left", 4, None),  # two rows
        ("far left", 5, "far left"),
        ("upper", 5, "upper"),
        ("far left and right", 5, None),
    ],
)
def test_places_in_other_grids(words, grid, cell):
    assert cell_of_words(words, grid) == cell


def test_mask_of_two_far_spots_is_in_the_larger_one():
    mask = np.zeros((90, 120), dtype=bool)
    mask[2:12, 2:12] = True
    mask[80:86, 110:116] = True
    assert cell_of_mask(mask) == "top left"  # their common centroid lies further in


def test_mask_of_a_ring_is_in_a_cell_that_it_touches():
    row, column = np.mgrid[:90, :90]
    radius = np.hypot(row - 45, column - 46)
    assert cell_of_mask((radius > 35) & (radius < 40)) != "center"
    assert cell_of_mask((radius > 8) & (radius < 12)) == "center"


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_cell_of_a_mask_always_holds_marked_pixels(seed, grid):
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 55)) < rng.uniform(0.001, 0.6)
    mask[rng.integers(40), rng.integers(55)] = True
    left, top, right, bottom = cell_box(cell_of_mask(mask, grid), 55, 40, grid)
    assert mask[top:bottom, left:right].any()


def test_places_that_do_not_exist_are_refused():
    with pytest.raises(ValueError):
        cell_of_mask(np.zeros((5, 5), dtype=bool))
    with pytest.raises(ValueError):
        cell_of_point(97, 3, 96, 96)
    with pytest.raises(ValueError, match="top left"):
        cell_box("north", 96, 96)
    with pytest.raises(ValueError):
        cell_names(6)


def test_each_term_belongs_to_one_category():
    terms = [term for category, synonyms in SYNONYMS.items() for term in (category, *synonyms)]
    assert len(terms) == len(set(terms))
    assert category_of_words(" Stain. ") == "contamination"
    assert category_of_words("through-hole") == "hole"
    assert category_of_words("glue") is None


@pytest.mark.parametrize(
    "words, category",
    [
        ("scratches", "scratch"),
        ("a scratch", "scratch"),
        ("Scratch.", "scratch"),
        ("surface-damage", "damage"),
        ("missing_parts", "missing parts"),
        ("cracks", "damage"),  # an everyday word that the paper's table lacks
        ("scratch or hole", None),
        ("scratchy", None),
    ],
)
def test_a_type_is_named_by_whole_words_in_any_form(words, category):
    assert category_of_words(words) == category


def test_a_reasoning_is_read_at_its_last_word():
    text = "The top is fine . A line at the bottom-left . Not dirt , not a hole : scratches ."
    assert place_in_reasoning(text) == "bottom left"
    assert type_in_reasoning(text) == "scratch"
    assert place_in_reasoning("At the left . A solid body lies on top of it .") == "left"
    assert place_in_reasoning("Nothing stands out .") is None
    assert type_in_reasoning("the whole finish") is None
