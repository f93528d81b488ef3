"""Pictures without masks: defects are drawn on good ones to learn from, and the real ones are kept for the test."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from iadr1_lib import course, world
from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.course import own_pictures, sources, steps
from iadr1_lib.data import content_hash, load_mvtec
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample
from iadr1_lib.runs import Choices, Run


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two categories with twelve good training pictures and twelve test pictures each."""
    root = tmp_path_factory.mktemp("drawn") / "factory"
    families = world.dev_families()[:2]
    world.write_world(root, families, 24, seed=0)
    world.write_references(root, families, 12)
    return list(load_mvtec(root))


def without_masks(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, mask=None, location=None) for sample in samples]


def images(samples: list[Sample]) -> set[str]:
    return {sample.image for sample in samples}


def test_masks_are_enough_from_a_number_on(samples: list[Sample]) -> None:
    assert not course.enough_masks(samples)  # twelve defective ones
    assert course.enough_masks([*samples, *samples])
    assert not course.enough_masks(without_masks([*samples, *samples]))


def test_what_is_filed_as_train_and_test_stays_so(samples: list[Sample]) -> None:
    good, asked = course.set_apart(samples, seed=0)
    assert good == [sample for sample in samples if sample.split == "train"]
    assert asked == [sample for sample in samples if sample.split == "test"]


def test_without_training_pictures_half_of_the_good_ones_are_taken(samples: list[Sample]) -> None:
    tests = [replace(sample, split="test") for sample in samples]
    good, asked = course.set_apart(tests, seed=0)
    assert images(good).isdisjoint(images(asked)) and images(good) | images(asked) == images(samples)
    assert {(sample.label, sample.split) for sample in good} == {("no", "train")}
    counts = Counter(sample.label for sample in asked)
    assert counts["yes"] == 12 and abs(counts["no"] - len(good)) <= 2


def test_too_few_good_pictures_say_how_many_are_needed(samples: list[Sample]) -> None:
    defective = [sample for sample in samples if sample.label == "yes"]
    with pytest.raises(UserError, match=f"0 good pictures.*{own_pictures.FEWEST_GOOD} are needed"):
        course.set_apart(defective, seed=0)


def test_half_of_the_good_pictures_get_a_defect(samples: list[Sample], tmp_path: Path) -> None:
    good, _ = course.set_apart(samples, seed=0)
    folder = course.write_drawn_defects(good, tmp_path / "train", seed=0)
    made = load_mvtec(folder)
    counts = Counter((sample.category, sample.label) for sample in made)
    assert {counts[sample.category, "no"] for sample in good} == {6}
    defective = [sample for sample in made if sample.label == "yes"]
    assert len(defective) == 24 >= sources.FEWEST_DEFECTIVE  # each of the other twelve twice
    assert {sample.type for sample in defective} == set(DEFECT_TYPES)
    assert all(sample.location for sample in defective)
    sizes = {Image.open(sample.image).size for sample in made}
    assert sizes == {(world.SIDE, world.SIDE)}, "no size may tell the label"
    again = load_mvtec(course.write_drawn_defects(good, tmp_path / "again", seed=0))
    assert [content_hash(sample.image) for sample in again] == [content_hash(sample.image) for sample in made]


def test_test_pictures_are_copied_as_they_are(samples: list[Sample], tmp_path: Path) -> None:
    _, asked = course.set_apart(samples, seed=0)
    copied = load_mvtec(course.write_copies(asked, tmp_path / "test"))

    def facts(some: list[Sample]) -> Counter[tuple[object, ...]]:
        return Counter((content_hash(s.image), s.label, s.location, s.category, s.split) for s in some)

    assert facts(list(copied)) == facts(asked)


def test_a_run_learns_from_drawn_defects_and_is_tested_on_real_ones(samples: list[Sample], tmp_path: Path) -> None:
    good, asked = course.set_apart(without_masks(samples), seed=0)
    data = course.write_drawn_defects(good, tmp_path / "train", seed=0)
    test = course.write_copies(asked, tmp_path / "test")
    run = Run("smoke", 0, tmp_path / "run", Choices((str(data),), (str(test),)))
    course.prepare(run)
    tested = course.benchmark_samples(run, "a test")
    assert {content_hash(s.image) for s in tested} == {content_hash(s.image) for s in asked}
    learnt = [sample for part in ("pa_sft", "sc_grpo", "dev") for sample in course.training_samples(run, part)]
    assert {sample.label for sample in learnt} == {"yes", "no"} and all(str(data) in sample.image for sample in learnt)


def test_records_take_references_however_the_good_pictures_were_filed(samples: list[Sample], tmp_path: Path) -> None:
    """One of a category in train/good and the others in test/good: each has another one beside it."""
    goods = [sample for sample in samples if sample.label == "no" and sample.category == samples[0].category][:4]
    part = [replace(goods[0], split="train"), *(replace(sample, split="test") for sample in goods[1:])]
    run = Run("smoke", 0, tmp_path / "run", Choices(("somewhere",)))
    sources.write_text(run.path("source", "pa_sft.jsonl"), sources.json_lines(map(asdict, part)))
    chosen = steps._references(run, "pa_sft")
    assert set(chosen) == images(part)
    assert all(chosen[image] != image for image in chosen)
