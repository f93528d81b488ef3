"""Whether a reasoning supports its tags: golden answers, whatever the teachers write, and what an attacker could."""

import json
import random
from pathlib import Path

import pytest
from corruptions import CORRUPTIONS, free_texts
from hypothesis import given
from hypothesis import strategies as st

from iadr1_lib.answer import CELLS, DEFECT_TYPES, build_answer, cell_names
from iadr1_lib.expert_ad import Facts, read_short, short_reasoning, supports
from iadr1_lib.world.marks import LOOK_ALIKES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "grounded.json").read_text())

seeds = st.integers(0, 9999).map(random.Random)
measured = {
    "area": st.sampled_from([0.004, 0.02, 0.1]),
    "contrast": st.sampled_from([0.1, 0.2]),
    "tone": st.sampled_from(["dark", "bright", "faint"]),
    "elongation": st.sampled_from([1.0, 3.0, 5.0]),
}
kinds = st.sampled_from([*DEFECT_TYPES, "bent tip", "other"])
defects = st.builds(Facts, st.just("yes"), st.sampled_from(CELLS), kinds, **measured)
look_alikes = {"look_alike": st.sampled_from(LOOK_ALIKES), "look_alike_cell": st.sampled_from(CELLS)}
normals = st.one_of(st.just(Facts("no")), st.builds(Facts, st.just("no"), **look_alikes))


def answer(reasoning: str, facts: Facts) -> str:
    return build_answer(reasoning, facts.label, facts.location, facts.defect_type)


@pytest.mark.parametrize("row", GOLDEN, ids=[row["why"] for row in GOLDEN])
def test_golden_answers(row):
    found = {"english": supports(row["answer"]), "taught": supports(row["answer"], taught_sentences=True)}
    assert found == {key: row[key] for key in found}


@given(st.one_of(defects, normals), seeds)
def test_what_the_short_teacher_writes_is_read_and_supported(facts, rng):
    text = short_reasoning(facts, rng)
    assert read_short(text) == (facts.label, facts.location, facts.defect_type)
    assert supports(answer(text, facts), taught_sentences=True)
    assert supports(answer(text, facts))


@pytest.mark.parametrize("grid", [2, 4, 5])
def test_places_of_another_grid(grid):
    for cell in cell_names(grid):
        facts = Facts("yes", cell, "hole", tone="dark")
        text = short_reasoning(facts, random.Random(0))
        assert [supports(answer(text, facts), grid, taught) for taught in (True, False)] == [True, True]
        other = cell_names(grid)[cell_names(grid).index(cell) - 1]
        assert not supports(build_answer(text, "yes", other, "hole"), grid, True)


def test_sound_english_is_supported():
    assert all(supports(record.answer) for record, _ in free_texts())


@pytest.mark.parametrize("kind", ["wrong place", "wrong type", "contradiction", "truncation"])
def test_spoiled_english_is_not(kind):
    rng = random.Random(0)
    sound = [record for record, _ in free_texts() if record.label == "yes"]
    spoiled = [CORRUPTIONS[kind](rng.choice(sound), rng) for _ in range(200)]
    assert sum(supports(record.answer) for record in spoiled) <= 0.03 * len(spoiled)


@given(defects, seeds, st.sampled_from(CELLS), st.sampled_from(DEFECT_TYPES))
def test_other_tags_than_the_reasoning_says(facts, rng, cell, kind):
    text = short_reasoning(facts, rng)
    same = (cell, kind) == (facts.location, facts.defect_type)
    for taught in (True, False):
        # In free English a coarser name of the same place is no contradiction ("top left" may later be "the left"), and
        # a bent tip is a deformation.
        if taught or (facts.defect_type in DEFECT_TYPES and not set(facts.location.split()) < set(cell.split())):
            assert supports(build_answer(text, "yes", cell, kind), taught_sentences=taught) == same
        assert not supports(build_answer(text, "no"), taught_sentences=taught)


@given(defects, seeds, st.data())
def test_a_taught_text_with_a_word_lost_doubled_or_moved_is_none(facts, rng, data):
    words = short_reasoning(facts, rng).split()
    at = data.draw(st.integers(0, len(words) - 1))
    to = data.draw(st.integers(0, len(words) - 1))
    moved = [*words[:at], *words[at + 1 :]]
    moved.insert(to, words[at])
    for spoiled in (words[:at] + words[at + 1 :], words[: at + 1] + words[at:], moved):
        if spoiled != words:
            assert not supports(answer(" ".join(spoiled), facts), taught_sentences=True)


@given(
    defects,
    seeds,
    st.integers(0, 4),
    st.sampled_from(["{0} {1} .", "{0} : {1} .", "a {1} at the {0} ."]),
    st.booleans(),
)
def test_a_copy_of_the_tags_anywhere_is_not_paid(facts, rng, at, form, taught):
    sentences = short_reasoning(facts, rng).split(" . ")
    sentences.insert(at, form.format(facts.location, facts.defect_type).removesuffix(" ."))
    text = " . ".join(sentences)
    assert not supports(answer(text if text.endswith(" .") else f"{text} .", facts), taught_sentences=taught)


@given(defects, seeds, st.lists(st.sampled_from(CELLS), min_size=5, unique=True), st.booleans())
def test_many_places_are_none(facts, rng, cells, taught):
    text = short_reasoning(facts, rng) + " I look at the " + " , at the ".join(cells) + " ."
    assert not supports(answer(text, facts), taught_sentences=taught)


@given(st.text(), st.sampled_from(["yes", "no"]), st.booleans())
def test_any_text_gives_an_answer(text, label, taught):
    tags = ("top", "hole") if label == "yes" else ()
    for whole in (text, build_answer(text, label, *tags)):
        assert supports(whole, taught_sentences=taught) in (True, False)
