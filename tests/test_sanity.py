"""What a benchmark measures: simple predictors with a reading, leaks by file and by picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iadr1_lib import world as synthetic
from iadr1_lib.course import steps as course
from iadr1_lib.data import load_mvtec
from iadr1_lib.evaluation import BASELINES, sanity
from iadr1_lib.records import Sample


def noise(folder: Path, benchmark: str, brightness: dict[str, int], count: int = 30) -> list[Sample]:
    """`count` pictures of each label; `brightness` says how light those of a label are."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    made = []
    for label in ("no", "yes"):
        for number in range(count):
            path = folder / f"{label}{number}.bmp"  # every file of one size
            pixels = rng.integers(0, 60, (32, 32, 3)) + brightness[label]
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            made.append(Sample(str(path), label, None, None, None, "c", benchmark, "test", "drawn"))  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Baselines of a benchmark that brightness gives away and of one that nothing does."""
    folder = tmp_path_factory.mktemp("noise")
    told = noise(folder / "told", "told", {"no": 60, "yes": 120})
    fair = noise(folder / "fair", "fair", {"no": 90, "yes": 90})
    return sanity.baselines([*told, *fair])


def test_one_row_per_benchmark_and_baseline(found) -> None:  # type: ignore[no-untyped-def]
    assert list(found.columns) == list(sanity.COLUMNS)
    assert set(zip(found["benchmark"], found["baseline"], strict=True)) == {
        (name, baseline) for name in ("fair", "told") for baseline in BASELINES
    }
    values = found.set_index(["benchmark", "baseline"])["value"]
    assert values["told", "mean_brightness"] == 100 and values["told", "always_yes"] == 50
    shown = sanity.table(found)
    assert list(shown["benchmark"]) == ["fair", "told"] and list(shown["pictures"]) == [60, 60]
    assert shown["mean brightness"][1].startswith("100.0 [")


def test_only_a_baseline_that_is_surely_better_than_chance_gets_a_sentence(found) -> None:  # type: ignore[no-untyped-def]
    sentences = sanity.readings(found)
    assert sentences and all(sentence.startswith("told: ") for sentence in sentences)
    assert any("mean brightness alone" in sentence for sentence in sentences)
    unsure = found.assign(low=50.0)
    assert sanity.readings(unsure) == []
    features = found[~found["baseline"].str.startswith("always")]
    assert len(sanity.readings(features.assign(value=60.0, low=50.1))) == len(features)
    assert sanity.readings(features.assign(value=59.9, low=50.1)) == []


def test_a_benchmark_of_one_label_has_no_figure(tmp_path: Path) -> None:
    only = [s for s in noise(tmp_path, "half", {"no": 60, "yes": 120}, 6) if s.label == "yes"]
    found = sanity.baselines(only)
    assert found["value"].isna().all() and sanity.readings(found) == []
    assert set(sanity.table(found).iloc[0][2:]) == {"-"}
    assert all(row["value"] is None for row in sanity.metric_rows(found))


def test_leaks_by_file_and_by_picture_are_told_apart(tmp_path: Path) -> None:
    families = synthetic.train_families(2)
    course.draw_references(tmp_path / "train", families, 4)
    course.draw_references(tmp_path / "test", families, 4, seed=1)
    train, test = load_mvtec(tmp_path / "train"), load_mvtec(tmp_path / "test")
    assert sanity.leaks(train, test) == []
    shutil.copy(train[0].image, test[0].image)
    Image.open(train[5].image).resize((150, 150)).save(test[3].image, quality=85)
    leaks = sanity.leaks(train, load_mvtec(tmp_path / "test"))
    assert [(leak.train, leak.test, leak.how) for leak in leaks] == [
        (train[0].image, test[0].image, "same file"),
        (train[5].image, test[3].image, "nearly the same"),
    ]
    lines = sanity.duplicate_report(train, load_mvtec(tmp_path / "test"))
    assert "1 pairs are the same file, 1 nearly the same picture" in lines[0] and test[3].image in lines[2]


def test_a_detector_that_learned_nothing_has_no_figure(tmp_path: Path) -> None:
    """With four normal pictures it calls nothing defective: that would read as 50."""
    few, many = (
        noise(tmp_path / "few", "few", {"no": 60, "yes": 120}, 4),
        noise(tmp_path / "many", "many", {"no": 60, "yes": 120}, 5),
    )
    values = sanity.baselines([*few, *many]).set_index(["benchmark", "baseline"])["value"]
    assert np.isnan(values["few", "classical_detector"]) and not np.isnan(values["many", "classical_detector"])
    assert not np.isnan(values["few", "mean_brightness"])
