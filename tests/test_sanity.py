"""What a benchmark measures: simple predictors with a reading, leaks by file and by picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_scoring import value

from iadr1_lib import world
from iadr1_lib.data import load_mvtec
from iadr1_lib.evaluation import BASELINES, label_only_baselines, metric_rows, sanity
from iadr1_lib.records import Sample


def pictures(folder: Path, count: int, split: str, spot: float, brighter: float = 0.0) -> list[Sample]:
    """Noise pictures; in the test every second one has a dark spot of a given depth, and is brighter where asked."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(split))
    samples = []
    for i in range(count):
        label = "yes" if i % 2 and split == "test" else "no"
        grey = rng.normal(0.6, 0.05, (96, 96))
        if label == "yes":
            y, x = rng.integers(10, 76, 2)
            grey[y : y + 10, x : x + 10] -= spot
            grey += brighter
        path = folder / f"{split}-{i}.png"
        Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8)).convert("RGB").save(path, compress_level=1)
        samples.append(Sample(str(path), label, None, None, None, "noise", folder.name, split, "test"))  # type: ignore[arg-type]
    return samples


@pytest.mark.parametrize("with_train", [True, False])
def test_what_gives_a_benchmark_away_is_detected(tmp_path: Path, with_train: bool) -> None:
    test = pictures(tmp_path / "a", 100, "test", spot=0.4) + pictures(tmp_path / "b", 100, "test", 0.0, 0.2)
    train = [s for name in "ab" for s in pictures(tmp_path / name, 30, "train", 0.4)] if with_train else []
    result = label_only_baselines(train, test)
    for constant in ("always_yes", "always_no"):
        assert value(result, f"{constant}/balanced_accuracy") == 50
    assert value(result, "classical_detector/balanced_accuracy", "a") > 85
    assert value(result, "mean_brightness/balanced_accuracy", "b") > 95
    assert 30 < value(result, "file_size/balanced_accuracy", "b") < 100
    assert "baseline/always_yes/balanced_accuracy/a" in {r["name"] for r in metric_rows(result, "baseline")}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Baselines of a benchmark that brightness gives away and of one that nothing does."""
    folder = tmp_path_factory.mktemp("noise")
    return sanity.baselines(pictures(folder / "bright", 60, "test", 0, 0.2) + pictures(folder / "fair", 60, "test", 0))


def test_one_row_per_benchmark_and_baseline(table: pd.DataFrame) -> None:
    assert set(zip(table["benchmark"], table["baseline"], strict=True)) == {
        (name, baseline) for name in ("fair", "bright") for baseline in BASELINES
    }
    shown = sanity.table(table)
    assert list(shown["benchmark"]) == ["bright", "fair"] and list(shown["pictures"]) == [60, 60]
    assert shown["mean brightness"][0] == "100.0" and shown["always yes"][1] == "50.0"


def test_only_a_baseline_that_is_surely_better_than_chance_gets_a_sentence(table: pd.DataFrame) -> None:
    sentences = sanity.readings(table[table["baseline"] != "file_size"])
    assert sentences and all(sentence.startswith("bright: ") for sentence in sentences)
    assert any("mean brightness alone" in sentence for sentence in sentences)
    assert sanity.readings(table.assign(low=50.0)) == []
    features = table[~table["baseline"].str.startswith("always")]
    assert len(sanity.readings(features.assign(value=60.0, low=50.1))) == len(features)
    assert sanity.readings(features.assign(value=59.9, low=50.1)) == []


def test_a_benchmark_of_one_label_or_of_too_few_pictures_has_no_figure(tmp_path: Path) -> None:
    """With four normal pictures the detector calls nothing defective, which would read as 50."""
    only = [s for s in pictures(tmp_path / "half", 12, "test", 0.4) if s.label == "yes"]
    one_label = sanity.baselines(only)
    assert one_label["value"].isna().all() and sanity.readings(one_label) == []
    assert set(sanity.table(one_label).iloc[0][2:]) == {"–"}
    assert all(row["value"] is None for row in metric_rows(one_label, "sanity"))
    few, many = pictures(tmp_path / "few", 8, "test", 0.4), pictures(tmp_path / "many", 10, "test", 0.4)
    values = sanity.baselines([*few, *many]).set_index(["benchmark", "baseline"])["value"]
    assert np.isnan(values["few", "classical_detector"]) and not np.isnan(values["many", "classical_detector"])
    assert not np.isnan(values["few", "mean_brightness"])


def test_leaks_by_file_and_by_picture_are_told_apart(tmp_path: Path) -> None:
    families = world.train_families(2)
    world.write_references(tmp_path / "train", families, 4)
    world.write_references(tmp_path / "test", families, 4, seed=1)
    train, test = load_mvtec(tmp_path / "train"), load_mvtec(tmp_path / "test")
    assert len(sanity.duplicate_report(train, test)) == 2  # nothing but the two counts
    shutil.copy(train[0].image, test[0].image)
    Image.open(train[5].image).resize((150, 150)).save(test[3].image, quality=85)
    lines = sanity.duplicate_report(train, load_mvtec(tmp_path / "test"))
    assert "1 pairs are the same file, 1 nearly the same picture" in lines[0]
    assert lines[1] == f"  1.00  {test[0].image}  =  {train[0].image}"
    assert lines[2].endswith(f"  {test[3].image}  =  {train[5].image}")
