"""Verification: each rule's example, careful free text passes, spoiled text is caught, near-duplicates are found."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from corruptions import CORRUPTIONS, DATA, GOOD_NO, GOOD_YES, caught, free_texts, rule_teacher_texts, turned_away
from hypothesis import given
from hypothesis import strategies as st

from iadr1_lib.answer import CELLS, DEFECT_TYPES, parse_answer
from iadr1_lib.expert_ad import RULES, Facts, Verifier, failures, verification
from iadr1_lib.expert_ad.claims import compared_with_tags
from iadr1_lib.expert_ad.verification import NEAR_DUPLICATE, Rule
from iadr1_lib.records import Record

FREE = [record for record, _ in free_texts()]


@pytest.fixture(scope="module", params=["short", "full", "free"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list:
    """Sound records in three styles, with what was measured."""
    if request.param == "free":
        return free_texts()
    return rule_teacher_texts(tmp_path_factory.mktemp("world") / "w", short=request.param == "short")


# ---------------------------------------------------------------------------------------------- against the tags

YES = "<location>top left</location><type>stain</type><answer>Yes</answer>"


@pytest.mark.parametrize(
    "sentence, tags, agrees",
    [
        ("A dark patch stands out at the top left .", YES, True),
        ("There is a dark patch at the left .", YES, True),  # coarser, no contradiction
        ("There is a dark patch at the bottom right .", YES, False),
        ("The surface is soiled: contamination .", YES, True),
        ("The material is pierced: a hole .", YES, False),
        ("I find no anomaly .", YES, False),
        ("I scan the image .", YES, None),
        ("All regions look alike .", "<answer>No</answer>", True),
        ("A dark scratch lies at the left .", "<answer>No</answer>", False),
        ("The anomaly is clear .", "", None),
        ("The anomaly is clear .", "<answer>Yes</answer>", True),  # no place and no type to compare with
    ],
)
def test_a_sentence_is_compared_with_the_tags_of_its_answer(sentence: str, tags: str, agrees: bool | None) -> None:
    said = parse_answer(f"<think>{sentence}</think>{tags}")
    assert compared_with_tags(sentence, said) == [(sentence.replace(" .", "."), agrees)]


# ---------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_s_example_is_rejected_by_it_and_by_no_other(rule: Rule) -> None:
    result = failures(rule.example, rule.example_facts)
    assert list(result) == [rule.name]
    assert result[rule.name].endswith(".") and rule.why.endswith(".")


@pytest.mark.parametrize("row", DATA["records"], ids=lambda row: f"{row['fails'] or 'sound'}: {row['text'][:30]}")
def test_sound_texts_pass_and_a_planted_fault_is_found_by_its_rule_alone(row: dict) -> None:
    record = Record("a.png", row["label"], row.get("location"), row.get("type"), "bolt", row["text"])
    facts = Facts("yes", **row["facts"]) if "facts" in row else None
    assert list(failures(record, facts)) == row["fails"]


@pytest.mark.parametrize("gap", ["location", "type"])
def test_a_defect_without_place_or_type_is_rejected(gap: str) -> None:
    assert "format" in failures(replace(GOOD_YES, **{gap: None}))


def test_a_type_that_says_nothing_need_not_be_named() -> None:
    text = GOOD_YES.reasoning.replace("It is a scratch", "It breaks the finish")
    assert failures(replace(GOOD_YES, reasoning=text, type="other")) == {}


def test_the_place_of_a_look_alike_may_be_named_where_it_was_measured() -> None:
    text = GOOD_YES.reasoning.replace("It is", "Another line lies at the bottom. It is")
    record = replace(GOOD_YES, reasoning=text)
    assert list(failures(record)) == ["place agrees"]
    assert failures(record, Facts("yes", "top left", "scratch", look_alike="cord", look_alike_cell="bottom")) == {}


@given(st.text(max_size=400), st.sampled_from([GOOD_YES, GOOD_NO]))
def test_any_text_can_be_examined_and_twice_alike(text: str, record: Record) -> None:
    assert failures(replace(record, reasoning=text)) == failures(replace(record, reasoning=text))


@pytest.mark.parametrize("loop", ["from left ", "scratch, ", "leans a to the left ", "no ", "a"])
def test_a_teacher_that_never_stopped_is_rejected_at_once(loop: str) -> None:
    assert list(failures(replace(GOOD_YES, reasoning=loop * 20_000))) == ["length"]


words = st.sampled_from(
    re.findall(r"\S+", "no not the a is top left right center scratch hole mask anomaly normal . , : knot I")
)


@given(st.lists(words, max_size=60), st.sampled_from([*DEFECT_TYPES, "bent tip", "other"]), st.sampled_from(CELLS))
def test_words_that_the_rules_know_can_come_in_any_order(text: list[str], kind: str, cell: str) -> None:
    for record in (replace(GOOD_YES, location=cell, type=kind), GOOD_NO):
        result = failures(replace(record, reasoning=" ".join(text)), Facts("yes", cell, kind, 0.1))
        assert all(sentence.endswith(".") for sentence in result.values())


# ---------------------------------------------------------------------------------------------- spoiled records


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_spoiled_records_are_caught(kind: str, sound: list) -> None:
    if kind == "wrong size" and sound[0][1] is None:
        return  # nothing was measured of texts by hand
    assert caught(kind, sound, 200) >= 0.99


def test_sound_records_pass(sound: list) -> None:
    assert turned_away(sound) <= 0.01


@pytest.mark.parametrize(
    ("sentence", "rule", "labels"),
    [
        (sentence, rule, labels)
        for kind, rule, labels in (
            ("leaks", "no leak of the label's origin", ("yes", "no")),
            ("denials", "no contradiction", ("yes",)),
            ("claims", "no contradiction", ("no",)),
        )
        for sentence in (*DATA["planted"][kind], *DATA["sentences"][kind])
    ],
)
def test_one_sentence_too_many_is_found_wherever_it_stands(sentence: str, rule: str, labels: tuple[str, ...]) -> None:
    missed, records = 0, [record for record in FREE if record.label in labels]
    for record in records:
        first, rest = record.reasoning.split(". ", 1)
        for text in (f"{first}. {sentence} {rest}", f"{record.reasoning} {sentence}"):
            missed += rule not in failures(replace(record, reasoning=text))
    assert missed <= 0.03 * len(records)  # "apart from that, ... " before it may excuse a sentence


# ---------------------------------------------------------------------------------------------- the set


def test_a_verifier_remembers_only_what_is_accepted() -> None:
    verifier = Verifier()
    assert verifier.examine(GOOD_YES) == verifier.examine(GOOD_YES) == {}
    verifier.accept(GOOD_YES)
    assert list(verifier.examine(replace(GOOD_YES, image="c.png"))) == [NEAR_DUPLICATE]
    assert list(verifier.examine(replace(GOOD_YES, image="c.png", type="hole"))) == ["type agrees", NEAR_DUPLICATE]
    assert verifier.examine(GOOD_NO) == {}


def test_wordings_may_come_again_where_that_is_asked_for_but_no_picture() -> None:
    verifier = Verifier(repeats=True)
    verifier.accept(GOOD_YES)
    assert verifier.examine(replace(GOOD_YES, image="c.png")) == {}
    assert list(verifier.examine(replace(GOOD_NO, image=GOOD_YES.image))) == [NEAR_DUPLICATE]


def _jaccard(a: str, b: str) -> float:
    def runs(text: str) -> set[tuple[str, ...]]:
        parts = text.split()
        return {tuple(parts[i : i + 5]) for i in range(max(len(parts) - 4, 1))}

    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=30).map(" ".join), min_size=2, max_size=6), st.data())
def test_the_index_finds_what_comparing_all_with_all_finds(texts: list[str], data: st.DataObject) -> None:
    new = (data.draw(st.sampled_from(texts)) + data.draw(st.sampled_from(["", " a", " b c"]))).strip()
    verifier = Verifier()
    for i, text in enumerate(texts):
        verifier.accept(replace(GOOD_NO, reasoning=text, image=f"{i}.png"))
    result = verifier.examine(replace(GOOD_NO, reasoning=new, image="new.png"))
    assert (NEAR_DUPLICATE in result) == any(_jaccard(new, text) >= 0.9 for text in texts)


def test_of_many_texts_with_sentences_in_common_few_are_compared() -> None:
    rng, index, candidates = random.Random(0), Counter(), 0
    pool = [sentence for record in FREE for sentence in record.reasoning.split(". ")]
    for _ in range(2000):
        keys = verification._lookup_keys(verification._shingles(". ".join(rng.sample(pool, 6))))
        candidates += sum(index[key] for key in keys)
        index.update(keys)
    assert candidates < 100 * 2000  # all with all: 1,000 each
