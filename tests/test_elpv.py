"""Solar cells: what is normal, what is left out, where the pictures go. A package of few drawn cells stands in."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from pictures import one_sentence
from PIL import Image

from iadr1_lib.data import elpv
from iadr1_lib.expert_ad.card import licence_of

# (module, probability, cells)
CELLS = [
    ("mono", 0.0, 20),
    ("mono", 1.0, 5),
    ("mono", 2 / 3, 2),
    ("poly", 0.0, 10),
    ("poly", 1.0, 6),
    ("poly", 1 / 3, 3),
]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """elpv_dataset with CELLS, in the real package's form; runs go to tmp_path/runs."""
    data = tmp_path / "site" / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    (data.parent / "__init__.py").write_text("")
    lines = []
    for module, probability, count in CELLS:
        for _ in range(count):
            name = f"images/cell{len(lines) + 1:04}.png"
            Image.new("L", (30, 30), len(lines)).save(data / name)
            lines.append(f"{name}  {probability!s:<18}  {module}")
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path / "runs"))
    return data


def test_cells_become_samples_and_unsure_ones_are_counted(package: Path, tmp_path: Path) -> None:
    table = elpv.load()
    kinds = Counter((s.category, s.split, s.label) for s in table)
    train, good, bad = (("train", "no"), ("test", "no"), ("test", "yes"))
    assert [kinds["mono", *kind] for kind in (train, good, bad)] == [2, 18, 5]
    assert [kinds["poly", *kind] for kind in (train, good, bad)] == [1, 9, 6]
    assert Counter(problem.kind for problem in table.passed_over) == {"in between": 5}
    assert {(s.benchmark, s.type, s.location, s.mask) for s in table} == {("ELPV (not of the paper)", None, None, None)}
    assert all(Path(s.image).is_relative_to(tmp_path / "runs" / "elpv") for s in table)
    for sample in table:
        assert (package / "images" / Path(sample.image).name).read_bytes() == Path(sample.image).read_bytes()


def test_a_folder_is_written_once_and_other_files_are_left_alone(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    elpv.load(folder)
    before = (folder / "elpv.json").stat().st_mtime_ns
    elpv.load(folder)
    assert (folder / "elpv.json").stat().st_mtime_ns == before
    assert len(list(folder.rglob("*.png"))) == 41
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    one_sentence(lambda: elpv.load(tmp_path / "mine"), "other files")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


def test_without_a_sound_package_one_sentence_says_how_to_get_it(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "labels.csv").write_text("images/cell0001.png  maybe  mono\n")
    one_sentence(elpv.load, "install elpv-dataset again")
    monkeypatch.setattr(elpv, "find_spec", lambda name: None)
    one_sentence(elpv.load, "pip install", "[real]")


def test_the_licence_is_known() -> None:
    assert "CC BY-NC-SA 4.0" in licence_of(elpv.NAME)


@pytest.mark.skipif(find_spec("elpv_dataset") is None, reason="the package elpv-dataset is not installed: extra real")
def test_the_real_package(tmp_path: Path) -> None:
    table = elpv.load(tmp_path / "cells")
    assert Counter(s.label for s in table) == {"no": 1508, "yes": 715}
    assert len(table.passed_over) == 401 and len(table) + 401 == 2624
    assert Counter(s.category for s in table) == {"mono": 901, "poly": 1322}
    assert sum(s.split == "train" for s in table) == 151
