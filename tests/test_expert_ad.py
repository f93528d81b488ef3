"""Expert-AD: facts measured on hand-made masks, the rule teacher's records, their checks and exports."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from iadr1_lib import expert_ad, synthetic, teachers
from iadr1_lib.answer import CELLS, DEFECT_TYPES, QUESTION, cell_box, matches_format, parse_answer
from iadr1_lib.benchmarks import Sample, load_mvtec
from iadr1_lib.facts import Facts, facts_of, measure
from iadr1_lib.records import Record, answer_only, pa_sft_row, read_rows, sc_grpo_row
from iadr1_lib.runs import UserError
from iadr1_lib.teachers import RuleTeacher, short_reasoning, teacher_vocabulary
from iadr1_lib.verification import _places_named, failed_checks

SIDE = 90
Maker = Callable[..., Sample]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Write one grey picture with a rectangle of another grey, and its mask; return the loader's sample of it."""

    def one(box: tuple[int, int, int, int] | None, value: int = 40, ground: int = 150, kind: str = "scratch") -> Sample:
        picture, mask = np.full((SIDE, SIDE, 3), ground, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        if box is not None:
            left, top, right, bottom = box
            picture[top:bottom, left:right] = value
            mask[top:bottom, left:right] = 255
        folder = tmp_path / "set" / "bolt"
        image, truth = folder / f"test/{kind}/0.png", folder / f"ground_truth/{kind}/0_mask.png"
        for path, pixels in ((image, picture), (truth, mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return load_mvtec(folder)[0]

    return one


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    root = tmp_path_factory.mktemp("world") / "w"
    synthetic.write_world(root, synthetic.train_families(16), 160, seed=4)
    return load_mvtec(root)


@pytest.fixture(scope="module")
def records(drawn: list[Sample]) -> list[Record]:
    accepted, rejected = expert_ad.build_records(drawn, RuleTeacher(0))
    assert rejected == []
    return accepted


# ---------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize("cell", CELLS)
def test_place_is_the_cell_of_the_mask(make: Maker, cell: str) -> None:
    left, top, right, bottom = cell_box(cell, SIDE, SIDE)
    assert facts_of(make((left + 9, top + 9, right - 9, bottom - 9))).location == cell


@pytest.mark.parametrize(
    ("value", "tone", "contrast"), [(40, "dark", 110 / 255), (230, "bright", 80 / 255), (153, "faint", 3 / 255)]
)
def test_tone_and_contrast_are_against_the_surroundings(make: Maker, value: int, tone: str, contrast: float) -> None:
    facts = facts_of(make((30, 30, 50, 50), value))
    assert facts.tone == tone
    assert facts.contrast == pytest.approx(contrast)


def test_the_surroundings_are_near_and_not_the_whole_picture() -> None:
    picture, mask = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), bool)
    picture[20:70, 20:70] = 200
    mask[40:50, 40:50] = True
    picture[mask] = 120  # brighter than the picture's mean, darker than what is around it
    assert measure(picture, mask)["tone"] == "dark"


@pytest.mark.parametrize(
    ("box", "size", "form"),
    [
        ((40, 40, 46, 46), "small", "patch"),
        ((40, 40, 52, 52), "medium", "patch"),
        ((20, 20, 60, 60), "large", "patch"),
        ((10, 44, 50, 48), "medium", "line"),
        ((44, 10, 48, 50), "medium", "line"),
        ((30, 40, 50, 48), "medium", "streak"),
    ],
)
def test_area_and_elongation_become_the_words_of_size_and_form(
    make: Maker, box: tuple[int, int, int, int], size: str, form: str
) -> None:
    facts = facts_of(make(box))
    width, height = box[2] - box[0], box[3] - box[1]
    assert facts.area == pytest.approx(width * height / SIDE**2)
    assert facts.elongation == pytest.approx(max(width, height) / min(width, height), rel=0.05)
    assert f"a {size} dark {form}" in short_reasoning(facts, random.Random(0)).lower()


def test_a_line_on_the_diagonal_is_a_line() -> None:
    assert measure(np.zeros((40, 40, 3), np.uint8), np.eye(40, dtype=bool))["elongation"] > 10


@pytest.mark.parametrize("box", [(3, 3, 4, 4), (3, 3, 4, 5), (0, 0, SIDE, SIDE)], ids=["pixel", "two pixels", "all"])
def test_the_smallest_and_the_largest_mask_can_be_measured(make: Maker, box: tuple[int, int, int, int]) -> None:
    facts = facts_of(make(box))
    assert np.isfinite([facts.area, facts.contrast, facts.elongation]).all()


def test_a_normal_picture_has_no_place_and_no_type(make: Maker) -> None:
    assert facts_of(make(None, kind="good")) == Facts(label="no")


def test_a_defect_without_a_mask_or_with_an_empty_one_is_a_user_error(make: Maker) -> None:
    with pytest.raises(UserError, match="mask"):
        facts_of(replace(make((3, 3, 9, 9)), mask=None))
    with pytest.raises(UserError, match="mask"):
        facts_of(make(None))


def test_masks_that_count_defects_from_one_are_read(make: Maker) -> None:
    sample = make((60, 60, 80, 80))
    assert sample.mask is not None
    numbered = Image.fromarray((np.asarray(Image.open(sample.mask)) > 0).astype(np.uint8)).convert("P")
    numbered.putpalette([0, 0, 0] * 256)
    numbered.save(sample.mask)
    assert facts_of(sample).location == "bottom right"


def test_notes_of_a_world_drawn_again_are_read_again(tmp_path: Path) -> None:
    family, root = synthetic.train_families(1), tmp_path / "w"
    for seed in (1, 2):
        synthetic.write_world(root, family, 12, seed)
        notes = json.loads((root / family[0].name / "notes.json").read_text())
        for sample in load_mvtec(root):
            name = Path(sample.image).relative_to(root / family[0].name).as_posix()
            assert facts_of(sample).look_alike == notes[name]["look_alike"]


# ---------------------------------------------------------------------------------------------- the teacher

anything = st.floats(0, 1)
defects = st.builds(
    Facts,
    label=st.just("yes"),
    location=st.sampled_from(CELLS),
    defect_type=st.sampled_from([*DEFECT_TYPES, "bent tip", "scratch head", "Broken Large", "cut"]),
    area=anything,
    contrast=anything,
    tone=st.sampled_from(["dark", "bright", "faint"]),
    elongation=st.floats(1, 50),
    look_alike=st.sampled_from([None, *synthetic.LOOK_ALIKES]),
    look_alike_cell=st.sampled_from([None, *CELLS]),
)
normals = st.builds(
    Facts,
    label=st.just("no"),
    look_alike=st.sampled_from([None, *synthetic.LOOK_ALIKES]),
    look_alike_cell=st.sampled_from([None, *CELLS]),
)


def record_of(facts: Facts, seed: int = 0) -> Record:
    reasoning = short_reasoning(facts, random.Random(seed))
    return Record("a.png", facts.label, facts.location, facts.defect_type, "bolt", reasoning)


@given(st.one_of(defects, normals), st.integers(0, 2**32))
def test_whatever_is_measured_the_teacher_s_record_passes_every_check(facts: Facts, seed: int) -> None:
    record = record_of(facts, seed)
    assert failed_checks(record) == []
    assert matches_format(record.answer) == facts.label
    read = parse_answer(record.answer)
    assert (read.answer, read.location) == (facts.label, facts.location)
    assert read.reasoning == record.reasoning


@given(st.one_of(defects.filter(lambda f: f.defect_type in DEFECT_TYPES), normals), st.integers(0, 2**32))
def test_the_teacher_uses_no_word_outside_its_vocabulary(facts: Facts, seed: int) -> None:
    known = {word for line in teacher_vocabulary() for word in line.split()}
    assert set(record_of(facts, seed).reasoning.split()) <= known


@given(defects, st.integers(0, 2**32))
def test_a_defect_s_place_is_named_and_no_other(facts: Facts, seed: int) -> None:
    named = _places_named(record_of(facts, seed).reasoning.lower())
    assert named == {facts.location}


def test_the_teacher_has_many_wordings_and_repeats_them_by_seed() -> None:
    facts = Facts("yes", "left", "hole", 0.01, 0.2, "dark", 1.0)
    assert len({record_of(facts, seed).reasoning for seed in range(60)}) > 20
    assert record_of(facts, 7) == record_of(facts, 7)


def test_every_record_of_a_drawn_world_passes_and_states_the_labels(drawn: list[Sample], records: list[Record]) -> None:
    assert [(r.image, r.label, r.location, r.type) for r in records] == [
        (s.image, s.label, s.location, s.type) for s in drawn
    ]
    assert all(failed_checks(r) == [] for r in records)
    assert any(r.label == "no" and "knot" in r.reasoning for r in records)


def test_records_repeat_with_the_seed_and_change_with_another(drawn: list[Sample], records: list[Record]) -> None:
    assert expert_ad.build_records(drawn, RuleTeacher(0))[0] == records
    other = expert_ad.build_records(drawn, RuleTeacher(1))[0]
    assert sum(a.reasoning != b.reasoning for a, b in zip(records, other, strict=True)) > len(records) / 2


# ---------------------------------------------------------------------------------------------- rejected records

GOOD_YES = Record(
    "a.png", "yes", "top left", "scratch", "bolt",
    "I scan the whole image . At the top left I see a small dark line . It is a scratch . The anomaly is clear .",
)  # fmt: skip
GOOD_NO = Record(
    "b.png", "no", None, None, "bolt", "I scan the whole image . Nothing stands out in any region . I find no anomaly ."
)  # fmt: skip


def test_rejected_records_are_kept_with_the_checks_they_failed(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    said_by = iter(["too short .", "too short .", "still too short ."])
    monkeypatch.setattr(teachers, "short_reasoning", lambda facts, rng: next(said_by))
    accepted, rejected = expert_ad.build_records([make((3, 3, 9, 9))], RuleTeacher(0), tries=3)
    assert accepted == []
    assert rejected[0]["reasoning"] == "still too short ."
    assert {"length", "place agrees", "type agrees"} <= set(rejected[0]["failed"])


def test_a_second_try_may_save_a_record(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    said_by = iter(["too short .", GOOD_YES.reasoning])
    monkeypatch.setattr(teachers, "short_reasoning", lambda facts, rng: next(said_by))
    accepted, rejected = expert_ad.build_records([make((3, 3, 9, 9))], RuleTeacher(0), tries=3)
    assert [r.reasoning for r in accepted] == [GOOD_YES.reasoning]
    assert rejected == []


# ---------------------------------------------------------------------------------------------- the set


def test_rows_have_the_released_formats() -> None:
    assert pa_sft_row(GOOD_YES) == {
        "images": "a.png",
        "messages": [
            {"role": "user", "content": "<image>\nAre there any defects in the query image?"},
            {
                "role": "assistant",
                "content": f"<think>{GOOD_YES.reasoning}</think><location>top left</location>"
                "<type>scratch</type><answer>Yes</answer>",
            },
        ],
    }
    assert sc_grpo_row(GOOD_NO, 3) == {
        "id": 3, "image": "b.png", "problem": QUESTION, "solution": "<answer>No</answer>",
    }  # fmt: skip
    assert (
        sc_grpo_row(GOOD_YES, 0)["solution"] == "<location>top left</location><type>scratch</type><answer>Yes</answer>"
    )


def test_answer_only_records_keep_labels_and_drop_reasoning() -> None:
    short = answer_only(GOOD_YES)
    assert matches_format(short.answer) == "yes"
    assert short.solution == GOOD_YES.solution
    assert parse_answer(short.answer).reasoning == ""


def test_export_writes_both_sets_the_rejected_and_a_report(
    tmp_path: Path, drawn: list[Sample], records: list[Record]
) -> None:
    rest = {s.image for s in drawn[100:]}
    mine = [r for r in records if r.image not in rest]
    bad = [{"image": "c.png", "failed": ["length", "format"]}, {"image": "d.png", "failed": ["length"]}]
    expert_ad.export(mine, drawn[100:], bad, tmp_path / "out")
    sft = read_rows(tmp_path / "out" / "pa_sft.json")
    grpo = read_rows(tmp_path / "out" / "sc_grpo.json")
    assert sft == [pa_sft_row(r) for r in mine]
    assert [row["id"] for row in grpo] == list(range(60))
    assert [row["solution"] for row in grpo] == [r.solution for r in records[100:]]
    assert not any("think" in row["solution"] for row in grpo)
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == bad
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["records"], report["rejected"]) == (100, 2)
    assert report["failed checks"] == {"length": 2, "format": 1}
    assert sum(report["label"].values()) == sum(report["category"].values()) == 100
    assert sum(report["type"].values()) == sum(report["location"].values()) == report["label"]["yes"]


def test_a_picture_in_both_sets_is_a_user_error_and_nothing_is_written(
    tmp_path: Path, drawn: list[Sample], records: list[Record]
) -> None:
    with pytest.raises(UserError, match="both") as error:
        expert_ad.export(records, drawn[:1], [], tmp_path / "out")
    assert drawn[0].image in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [None, "[]", "{}", '[{"images": ', "[1, 2]"])
def test_rows_that_cannot_be_read_name_the_file_and_the_notebook(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "pa_sft.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        read_rows(path, made_by="03_expert_ad")
    assert str(path) in str(error.value)
    assert "03_expert_ad" in str(error.value)
