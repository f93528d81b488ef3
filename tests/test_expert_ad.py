"""Expert-AD: facts measured on hand-made masks, the rule teacher's records, their checks and exports."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import read_json
from corruptions import GOOD_NO, GOOD_YES
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from iadr1_lib import world
from iadr1_lib.answer import CELLS, DEFECT_TYPES, QUESTION, cell_box, cell_names, matches_format, parse_answer
from iadr1_lib.data import labelled, load_mvtec, open_image
from iadr1_lib.errors import UserError
from iadr1_lib.expert_ad import RULES, Draft, Facts, RuleTeacher, Task, build, facts_of, failures
from iadr1_lib.expert_ad import card as data_card
from iadr1_lib.expert_ad.facts import Surface, measure, survey_surface
from iadr1_lib.expert_ad.teachers import full_reasoning, item_named, short_reasoning, teacher_vocabulary
from iadr1_lib.expert_ad.verification import NEAR_DUPLICATE
from iadr1_lib.records import Record, Sample, answer_only, pa_sft_row, read_rows, sc_grpo_row
from iadr1_lib.reporting import severity_of

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
    world.write_world(root, world.train_families(16), 160, seed=4)
    return load_mvtec(root)


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


@pytest.mark.parametrize(
    ("boxes", "direction", "patches", "others", "shape"),
    [
        ([(10, 44, 50, 46)], "horizontally", 1, (), "line"),
        ([(44, 10, 46, 50)], "vertically", 1, (), "line"),
        ([(20, 20, 40, 40)], "", 1, (), "patch"),
        ([(5, 30, 85, 60)], "horizontally", 1, (), "elongated area"),
        ([(10, 10, 12, 30), (70, 10, 72, 28)], "vertically", 2, ("top right",), "line"),
        ([(10, 10, 30, 30), (80, 80, 81, 81)], "", 1, (), "patch"),  # a speck does not count
    ],
)
def test_form_and_direction_are_those_of_the_largest_patch(
    boxes: list[tuple[int, int, int, int]], direction: str, patches: int, others: tuple[str, ...], shape: str
) -> None:
    picture, mask = np.full((SIDE, SIDE, 3), 150, np.uint8), np.zeros((SIDE, SIDE), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    found = Facts("yes", **measure(picture, mask))
    assert (found.direction, found.patches, found.other_cells, found.shape) == (direction, patches, others, shape)


def test_a_surface_is_measured_as_it_looks() -> None:
    picture = np.full((SIDE, SIDE, 3), 60, np.uint8)
    picture[:30, 60:] = 220  # top right
    surface = survey_surface(picture)
    assert (surface.brightness_word, surface.texture_word, surface.brightest) == ("dark", "smooth", "top right")
    assert surface.difference == pytest.approx(160 / 255)
    noisy = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    assert survey_surface(noisy).texture_word == "coarsely textured"


def test_a_large_picture_is_measured_as_its_small_copy() -> None:
    small, mask = np.full((300, 300, 3), 150, np.uint8), np.zeros((300, 300), bool)
    mask[40:60, 30:200] = True
    small[mask] = 90
    big = [np.kron(a, np.ones((4, 4) + (1,) * (a.ndim - 2), a.dtype)) for a in (small, mask)]
    for name, value in measure(small, mask).items():
        assert measure(*big)[name] == (pytest.approx(value, rel=0.1) if isinstance(value, float) else value), name


def test_the_smallest_the_largest_and_a_diagonal_mask_can_be_measured(make: Maker) -> None:
    for box in ((3, 3, 4, 4), (3, 3, 4, 5), (0, 0, SIDE, 67)):  # 74 % of the picture
        facts = facts_of(make(box))
        assert np.isfinite([facts.area, facts.contrast, facts.elongation]).all()
    assert measure(np.zeros((40, 40, 3), np.uint8), np.eye(40, dtype=bool))["elongation"] > 10


def test_a_normal_picture_has_no_place_and_no_type(make: Maker) -> None:
    facts = facts_of(make(None, kind="good"))
    assert facts.surface is not None and facts.surface.brightness_word == "mid-grey"
    assert replace(facts, surface=None) == Facts(label="no")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((3, 3, 9, 9), "defect without mask"),
        ((3, 3, 9, 9), "mask size"),
        (None, "empty mask"),
        ((0, 0, SIDE, SIDE), "mask marks most"),
    ],
)
def test_a_defect_whose_mask_says_nothing_is_a_user_error_and_is_turned_away(
    make: Maker, drawn: list[Sample], box: tuple[int, int, int, int] | None, reason: str
) -> None:
    sample = make(box)
    if reason == "defect without mask":
        sample = replace(sample, mask=None)
    if reason == "mask size":
        Image.open(str(sample.mask)).resize((9, 9)).save(str(sample.mask))
    with pytest.raises(UserError, match="mask"):
        facts_of(sample)
    sets = build.draw_sets([*drawn, sample], seed=0)
    assert [(row["image"], row["reason"]) for row in sets.turned_away] == [(sample.image, reason)]


@pytest.mark.parametrize("name", ["0.png", "good/0.png", "test/good/0.png"])
def test_pictures_may_be_named_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "bolt" / "test" / "good"
    folder.mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE), "grey").save(folder / "0.png")
    notes = {"test/good/0.png": {"look_alike": "a smear", "look_alike_cell": "top", "severity": 0.5}}
    (tmp_path / "bolt" / "notes.json").write_text(json.dumps(notes))
    monkeypatch.chdir([folder, *folder.parents][name.count("/")])
    sample = Sample(name, "no", None, None, None, "bolt", "set", "test", "mvtec")
    assert facts_of(sample).look_alike == "a smear" and severity_of(name) == 0.5
    (tmp_path / "bolt" / "notes.json").write_text("[1, 2]  a file of the user's own")
    assert facts_of(sample).look_alike is None and np.isnan(severity_of(name))


def test_other_processes_scale_deep_pictures_as_this_one(tmp_path: Path) -> None:
    for number, kind in enumerate(["good", "good", "good", "glint"]):
        path = tmp_path / "part" / "test" / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((SIDE, SIDE), 900, np.uint16)
        pixels[:9, :9] = 4000 if kind == "glint" else 900
        Image.fromarray(pixels).save(path)
    good = [sample for sample in load_mvtec(tmp_path) if sample.label == "no"]
    assert list(build._map(facts_of, good, 1)) == list(build._map(facts_of, good, 2))
    assert len(good) == 3


def test_masks_that_count_defects_from_one_are_read(make: Maker) -> None:
    sample = make((60, 60, 80, 80))
    assert sample.mask is not None
    numbered = Image.fromarray((np.asarray(Image.open(sample.mask)) > 0).astype(np.uint8)).convert("P")
    numbered.putpalette([0, 0, 0] * 256)
    numbered.save(sample.mask)
    assert facts_of(sample).location == "bottom right"


def test_notes_of_a_world_drawn_again_are_read_again(tmp_path: Path) -> None:
    family, root = world.train_families(1), tmp_path / "w"
    for seed in (1, 2):
        world.write_world(root, family, 12, seed)
        notes = json.loads((root / family[0].name / "notes.json").read_text())
        for sample in load_mvtec(root):
            name = Path(sample.image).relative_to(root / family[0].name).as_posix()
            assert facts_of(sample).look_alike == notes[name]["look_alike"]


# ---------------------------------------------------------------------------------------------- the teacher

anything = st.floats(0, 1)
surfaces = st.builds(
    Surface,
    brightness=anything,
    texture=st.floats(0, 0.1),
    brightest=st.sampled_from(CELLS),
    darkest=st.sampled_from(CELLS),
    difference=anything,
    liveliest=st.sampled_from(CELLS),
    unrest=st.floats(1, 3),
)
defects = st.builds(
    Facts,
    label=st.just("yes"),
    location=st.sampled_from(CELLS),
    defect_type=st.sampled_from([*DEFECT_TYPES, "other"]),
    area=anything,
    contrast=anything,
    tone=st.sampled_from(["dark", "bright", "faint"]),
    elongation=st.floats(1, 50),
    difference=st.floats(-1, 1),
    length=st.floats(1, 50),
    direction=st.sampled_from(["", "horizontally", "vertically", "diagonally"]),
    width=anything,
    patches=st.integers(1, 9),
    surface=st.none() | surfaces,
    look_alike=st.sampled_from([None, *world.LOOK_ALIKES]),
    look_alike_cell=st.sampled_from([None, *CELLS]),
)
normals = defects.map(
    lambda f: Facts("no", surface=f.surface, look_alike=f.look_alike, look_alike_cell=f.look_alike_cell)
)


own_types = st.sampled_from(["bent tip", "scratch head", "Broken Large", "cut"])


@given(st.one_of(defects, normals, st.builds(replace, defects, defect_type=own_types)), st.integers(0, 2**32))
def test_whatever_is_measured_the_teacher_s_record_passes_every_check(facts: Facts, seed: int) -> None:
    short = short_reasoning(facts, random.Random(seed))
    record = Record("a.png", facts.label, facts.location, facts.defect_type, "metal plate", short)
    assert failures(record, facts) == {}
    assert matches_format(record.answer) == facts.label
    read = parse_answer(record.answer)
    assert (read.answer, read.location, read.reasoning) == (facts.label, facts.location, record.reasoning)
    if facts.defect_type in (None, *DEFECT_TYPES):
        assert set(short.split()) <= {word for line in teacher_vocabulary() for word in line.split()}


@given(st.one_of(defects, normals), st.integers(0, 2**32))
def test_whatever_is_measured_whole_sentences_pass_every_rule(facts: Facts, seed: int) -> None:
    reasoning = full_reasoning(facts, "metal plate", random.Random(seed))
    record = Record("a.png", facts.label, facts.location, facts.defect_type, "metal plate", reasoning)
    assert failures(record, facts) == {}
    if facts.label == "yes":
        assert f" {facts.location}" in reasoning and f"{facts.size} {facts.shape}" in reasoning
        assert facts.step in reasoning and str(facts.defect_type) in reasoning


def test_records_of_a_drawn_world_state_its_labels_and_change_with_the_seed_only(drawn: list[Sample]) -> None:
    first, again, other = (
        build.build_records(drawn, RuleTeacher(seed, short=True), repeats=True).records for seed in (0, 0, 1)
    )
    labels = [(r.image, r.label, r.location, r.type) for r in first]
    assert labels == [(s.image, s.label, s.location, s.type) for s in drawn]
    assert any(r.label == "no" and "knot" in r.reasoning for r in first)
    assert first == again and sum(a != b for a, b in zip(first, other, strict=True)) > len(first) / 2


# ---------------------------------------------------------------------------------------------- rejected records


class Parrot:
    """A teacher that says what it is given, one text per call, and remembers what it was asked."""

    name = key = "parrot"

    def __init__(self, *texts: str | None) -> None:
        self.texts, self.asked = iter(texts), []  # type: ignore[var-annotated]

    def write(self, tasks: Sequence[Task]) -> Iterator[Draft]:
        for task in tasks:
            self.asked.append(task)
            text = next(self.texts)
            yield Draft(text, None if text else "refused: it would not")


def test_a_second_try_is_told_why_and_one_too_many_is_listed_with_its_rules(make: Maker) -> None:
    sample, teacher = make((3, 3, 9, 9)), Parrot("too short .", GOOD_YES.reasoning)
    built = build.build_records([sample], teacher)
    assert [r.reasoning for r in built.records] == [GOOD_YES.reasoning]
    assert built.rejected == [] and built.tries == {2: 1}
    first, second = teacher.asked
    assert (first.attempt, first.reasons) == (0, ())
    assert second.attempt == 1 and all(reason.endswith(".") for reason in second.reasons) and second.reasons
    built = build.build_records([sample], Parrot("too short .", "too short .", "still too short ."))
    (rejected,) = built.rejected
    assert built.records == [] and rejected["reasoning"] == "still too short ."
    assert {"length", "place agrees", "type agrees"} <= set(rejected["failed"])
    assert built.counts["length"] == 3 and built.counts["format"] == 0


def test_a_stopped_run_goes_on_from_its_journal(drawn: list[Sample], tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    some = drawn[:12]
    whole = build.build_records(some, RuleTeacher(0))

    class Dies(RuleTeacher):
        def write(self, tasks: Sequence[Task]) -> Iterator[Draft]:
            yield from super().write(tasks[:5])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.build_records(some, Dies(0), journal=journal)
    with journal.open("a") as file:
        file.write('{"image": "cut o')  # as a kill leaves it
    asked = Parrot(*[r.reasoning for r in whole.records[5:]])
    asked.key = RuleTeacher(0).key
    again = build.build_records(some, asked, journal=journal)
    assert again.records == whole.records
    assert len(asked.asked) == 7
    for teacher, tries in ((RuleTeacher(0), 1), (RuleTeacher(1), 3)):
        with pytest.raises(UserError, match="other settings"):
            build.build_records(some, teacher, tries=tries, journal=journal)


@pytest.mark.parametrize("content", ['{"mine": 1}\n', '["mine"]\n'])
def test_a_file_that_is_no_journal_is_kept(make: Maker, tmp_path: Path, content: str) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text(content)
    with pytest.raises(UserError, match="other settings"):
        build.build_records([make((3, 3, 9, 9))], RuleTeacher(0), journal=journal)
    assert journal.read_text() == content


def test_a_journal_s_row_holds_for_the_same_picture_only(make: Maker, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    build.build_records([make((3, 3, 9, 9))], RuleTeacher(0), journal=journal)
    moved = build.build_records([make((80, 80, 88, 88))], RuleTeacher(0), journal=journal)
    assert [r.location for r in moved.records] == ["bottom right"]


@pytest.mark.parametrize("kind", ["bom", "crlf", "cut in a letter", "utf-16", "damaged in the middle"])
def test_a_journal_as_other_systems_leave_it_loses_no_decision(make: Maker, tmp_path: Path, kind: str) -> None:
    journal, samples = tmp_path / "journal.jsonl", [make((3, 3, 9, 9))]
    built = build.build_records(samples, Parrot(GOOD_YES.reasoning), journal=journal)
    text = journal.read_text(encoding="utf-8")
    first, rest = text.split("\n", 1)
    content = {
        "bom": text.encode("utf-8-sig"),
        "crlf": text.replace("\n", "\r\n").encode(),
        "cut in a letter": text.encode() + '{"image": "ö'.encode()[:-1],
        "utf-16": text.encode("utf-16"),
        "damaged in the middle": f"{first}\n{{'a'\n{rest}".encode(),
    }
    journal.write_bytes(content[kind])
    if kind in ("utf-16", "damaged in the middle"):
        with pytest.raises(UserError, match="UTF-16|line 2"):
            build.build_records(samples, Parrot(), journal=journal)
        assert journal.read_bytes() == content[kind]
    else:
        assert build.build_records(samples, Parrot(), journal=journal) == built  # nothing is asked again


@pytest.mark.parametrize(
    "category", ["mask set", "label", "metal_defects", "a|b{c}", "Class1", "hole plate", "left arm"]
)
@pytest.mark.parametrize("box", [None, (3, 3, 9, 9)])
def test_a_folder_s_name_rejects_no_record(make: Maker, category: str, box: tuple[int, int, int, int] | None) -> None:
    sample = replace(make(box, kind="good" if box is None else "scratch"), category=category)
    assert build.build_records([sample], RuleTeacher(0)).rejected == []
    assert item_named("metal_plate") == "metal plate" and item_named(category) == "item"


def test_a_teacher_without_an_answer_is_asked_again_by_the_next_run(make: Maker, tmp_path: Path) -> None:
    sample, journal = make((3, 3, 9, 9)), tmp_path / "journal.jsonl"
    first = build.build_records([sample], Parrot("too short .", None), journal=journal)
    (rejected,) = first.rejected
    assert rejected["failed"][build.NO_DRAFT] == "refused: it would not"
    assert "length" in rejected["failed"] and rejected["reasoning"] == "too short ."
    assert len(build.build_records([sample], Parrot(GOOD_YES.reasoning), journal=journal).records) == 1


@pytest.mark.parametrize("grid", [1, 2, 4, 5])
def test_records_for_another_grid_name_its_cells(drawn: list[Sample], grid: int) -> None:
    built = build.build_records(drawn[:40], RuleTeacher(0), grid=grid)
    places = {r.location for r in built.records if r.label == "yes"}
    assert places <= set(cell_names(grid)) and built.rejected == []
    for record in built.records:
        wrong = [cell for cell in cell_names(grid) if cell != record.location]
        if record.label == "yes" and wrong:
            elsewhere = re.sub(rf"\b{record.location}\b", wrong[-1], record.reasoning)
            assert "place agrees" in failures(replace(record, reasoning=elsewhere))
            told_both = record.reasoning + f" The defect is at the {wrong[0]}."
            assert "place agrees" in failures(replace(record, reasoning=told_both))
    assert {labelled(s, grid).location for s in drawn[:40]} - {None} == places


# ---------------------------------------------------------------------------------------------- who is drawn


def test_the_sets_are_halved_even_and_apart(drawn: list[Sample]) -> None:
    sets = build.draw_sets(drawn, seed=0, sizes=(60, 40))
    for samples, size in ((sets.pa_sft, 60), (sets.sc_grpo, 40)):
        assert len(samples) == size and sum(s.label == "yes" for s in samples) == size // 2
        per_category = Counter(s.category for s in samples if s.label == "no")
        assert max(per_category.values()) - min(per_category.values()) <= 1
    images = [s.image for s in (*sets.pa_sft, *sets.sc_grpo, *sets.spare)]
    assert len(images) == len(set(images)) == len(drawn)
    assert build.draw_sets(drawn, 0, (60, 40)) == sets != build.draw_sets(drawn, 1, (60, 40))
    by_default = build.draw_sets(drawn, seed=0)
    assert len(by_default.pa_sft) + len(by_default.sc_grpo) == len(drawn)


def test_test_pictures_and_second_copies_are_turned_away_by_content(drawn: list[Sample], tmp_path: Path) -> None:
    copy = tmp_path / "another name.png"
    copy.write_bytes(Path(drawn[0].image).read_bytes())
    sets = build.draw_sets([*drawn, replace(drawn[0], image=str(copy))], 0, tests=[drawn[1]])
    assert {row["image"] for row in sets.turned_away} == {str(copy), drawn[1].image}
    assert build.draw_sets([*drawn, replace(drawn[0], image=str(copy), label="no")], 0).turned_away == [
        {"image": image, "label": label, "reason": "both normal and defective"}
        for image, label in ((drawn[0].image, "yes"), (str(copy), "no"))
    ]
    kept = {s.image for s in (*sets.pa_sft, *sets.sc_grpo, *sets.spare)}
    assert kept == {s.image for s in drawn} - {drawn[1].image}


def test_a_pool_of_one_label_or_too_small_a_one_is_a_user_error(drawn: list[Sample]) -> None:
    with pytest.raises(UserError, match="two defective"):
        build.draw_sets([s for s in drawn if s.label == "no"], 0)
    with pytest.raises(UserError, match="ask for fewer"):
        build.draw_sets(drawn, 0, sizes=(200, 2))


# ---------------------------------------------------------------------------------------------- the set


def test_rows_have_the_released_formats() -> None:
    tags = "<location>top left</location><type>scratch</type><answer>Yes</answer>"
    assert pa_sft_row(GOOD_YES) == {
        "images": str(Path("a.png").absolute()),
        "messages": [
            {"role": "user", "content": "<image>\nAre there any defects in the query image?"},
            {"role": "assistant", "content": f"<think>{GOOD_YES.reasoning}</think>{tags}"},
        ],
    }
    picture = str(Path("b.png").absolute())
    assert sc_grpo_row(GOOD_NO, 3) == {
        "id": 3, "image": picture, "problem": QUESTION, "solution": "<answer>No</answer>",
    }  # fmt: skip
    assert sc_grpo_row(GOOD_YES, 0)["solution"] == tags
    assert answer_only(GOOD_YES).answer == f"<think></think>{tags}"


@pytest.fixture(scope="module")
def exported(drawn: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, build.Built]:
    sets = build.draw_sets(drawn, 0, (60, 40))
    built = build.build_records(sets.pa_sft, RuleTeacher(0))
    folder = tmp_path_factory.mktemp("set") / "out"
    build.export(built, [labelled(s) for s in sets.sc_grpo], folder, drawn=sets)
    return folder, built


def test_export_writes_both_sets_the_rejected_and_a_report(exported: tuple[Path, build.Built]) -> None:
    folder, built = exported
    sft, grpo = read_rows(folder / "pa_sft.json"), read_rows(folder / "sc_grpo.json")
    assert sft == [pa_sft_row(r) for r in built.records] and len(sft) == 60
    assert [row["id"] for row in grpo] == list(range(40))
    assert not any("think" in row["solution"] for row in grpo)
    report = read_json(folder / "report.json")
    assert (report["records"], report["rejected"], report["SC-GRPO"]["questions"]) == (60, 0, 40)
    assert sum(report["label"].values()) == sum(report["category"].values()) == 60
    assert sum(report["type"].values()) == sum(report["location"].values()) == report["label"]["yes"] == 30
    assert set(report["rejections by rule, retries included"]) == {*RULES, NEAR_DUPLICATE}
    assert sum(report["spare"].values()) == 60
    assert report["sentences of reasoning, mean"] >= 5


def test_the_variants_keep_labels_and_pictures(exported: tuple[Path, build.Built]) -> None:
    folder, built = exported
    rows = {path.stem: read_rows(path) for path in (folder / "variants").glob("*.json")}
    assert [row["images"] for row in rows["pa_sft_answer_only"]] == [r.image for r in built.records]
    assert all("<think></think>" in row["messages"][1]["content"] for row in rows["pa_sft_answer_only"])
    smaller: set[str] = set()
    for share in build.SHARES:
        images = {row["images"] for row in rows[f"pa_sft_{share}"]}
        assert len(images) == 60 * share // 100 and smaller < images
        smaller = images
    one_shot = rows["pa_sft_one_shot"]
    of = {r.image: r for r in built.records}
    assert one_shot
    for row in one_shot:
        reference, query = row["images"]
        assert reference != query and row["messages"][0]["content"].count("<image>") == 2
        assert Path(reference).parts[-4:-1] != () and "good" in reference
        assert Path(reference).parents[2] == Path(query).parents[2], "a reference is of the same category"
        assert row["messages"][1]["content"] == of[query].answer


def test_rejected_and_turned_away_pictures_are_listed(drawn: list[Sample], tmp_path: Path) -> None:
    sets = build.draw_sets(drawn, 0, (4, 4), tests=[drawn[0]])
    built = build.build_records(sets.pa_sft, Parrot(*["too short ."] * 12))
    build.export(built, [], tmp_path, drawn=sets)
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {row["image"] for row in rows} == {s.image for s in sets.pa_sft} | {drawn[0].image}
    assert all(row["failed"] for row in rows)


def test_a_picture_in_both_sets_is_a_user_error_and_nothing_is_written(tmp_path: Path, drawn: list[Sample]) -> None:
    built = build.build_records(drawn[:4], RuleTeacher(0))
    with pytest.raises(UserError, match=f"both.*{drawn[0].image}"):
        build.export(built, [labelled(drawn[0])], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- the folder


def test_the_folder_loads_with_datasets_and_its_card_tells_what_is_in_it(
    exported: tuple[Path, build.Built], tmp_path: Path
) -> None:
    folder, built = exported
    out = tmp_path / "set"
    data_card.write_parquet(built.records, out / "pa_sft.parquet")
    data_card.write_parquet([replace(r, reasoning="") for r in built.records], out / "sc_grpo.parquet")
    card = data_card.write_card(out, read_json(folder / "report.json")).read_text()
    loaded = datasets.load_dataset(str(out), "pa_sft", cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["answer"] == [r.answer for r in built.records]
    assert loaded[0]["image"].size == Image.open(built.records[0].image).size
    questions = datasets.load_dataset(str(out), "sc_grpo", cache_dir=str(tmp_path / "cache"))["train"]
    assert questions["answer"] == [r.solution for r in built.records]
    assert "60 pictures" in card and "40 other pictures" in card and "rule" in card
    for rule in (*RULES, NEAR_DUPLICATE):
        assert rule in card
    assert set(questions["grid"]) == {3}
    assert "not known" in card  # the drawn world is no data set of the licence table


@pytest.mark.parametrize("text", [None, "[]", "{}", '[{"images": ', "[1, 2]"])
def test_rows_that_cannot_be_read_name_the_file_and_the_notebook(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "pa_sft.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="pa_sft.json.*03_expert_ad"):
        read_rows(path, made_by="03_expert_ad")


def test_parquet_shows_the_pixels_that_are_learnt(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(1000, 3000, (9, 7)).astype(np.uint16)
    plain = np.full((9, 7, 3), 9, np.uint8)
    for name, array in (("deep", deep), ("plain", plain)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    records = [replace(GOOD_NO, image=str(tmp_path / f"{name}.png"), grid=4) for name in ("deep", "plain")]
    data_card.write_parquet(records, tmp_path / "out" / "pa_sft.parquet")
    table = pq.read_table(tmp_path / "out" / "pa_sft.parquet").to_pylist()
    for row, record in zip(table, records, strict=True):
        with Image.open(BytesIO(row["image"]["bytes"])) as shown:
            assert shown.convert("RGB").tobytes() == open_image(record.image).tobytes()
        assert row["grid"] == 4
    assert table[1]["image"]["bytes"] == Path(records[1].image).read_bytes()
