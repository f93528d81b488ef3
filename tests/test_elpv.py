"""Solar cells: what is normal, what is left out and set aside. A package of few drawn cells stands in."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from pictures import one_sentence, problem_kinds
from PIL import Image

from iadr1_lib.data import elpv, load_samples
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
    """The folder of data in an elpv_dataset with CELLS, in the real package's form."""
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
    return data


def test_cells_become_samples_and_unsure_ones_are_counted(package: Path) -> None:
    table = elpv.load()
    kinds = Counter((s.category, s.split, s.label) for s in table)
    train, good, bad = (("train", "no"), ("test", "no"), ("test", "yes"))
    assert [kinds["mono", *kind] for kind in (train, good, bad)] == [2, 18, 5]
    assert [kinds["poly", *kind] for kind in (train, good, bad)] == [1, 9, 6]
    assert Counter(problem.kind for problem in table.passed_over) == {"in between": 5}
    assert {(s.benchmark, s.type, s.location, s.mask) for s in table} == {("ELPV (not of the paper)", None, None, None)}
    assert {s.image for s in table} < {str(path) for path in (package / "images").iterdir()}
    assert list(elpv.load()) == list(table)


def test_a_copy_of_the_data_set_is_read_where_it_lies_and_sets_nothing_aside(package: Path) -> None:
    table = load_samples(package)
    assert Counter((s.category, s.split, s.label) for s in table) == {
        ("mono", "test", "no"): 20,
        ("mono", "test", "yes"): 5,
        ("poly", "test", "no"): 10,
        ("poly", "test", "yes"): 6,
    }
    assert {(s.benchmark, s.source) for s in table} == {("data", "elpv")}
    assert set(problem_kinds(table)) == {"in between", "defect without mask"}
    (package / "images" / "cell0001.png").unlink()
    one_sentence(lambda: load_samples(package), "cell0001.png", "put them there")


def test_without_a_sound_package_one_sentence_says_how_to_get_it(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "labels.csv").write_text("images/cell0001.png  1.0  mono\nimages/cell0002.png  maybe  mono\n")
    one_sentence(elpv.load, "labels.csv, line 2", "download the file again")
    monkeypatch.setattr(elpv, "find_spec", lambda name: None)
    one_sentence(elpv.load, "pip install", "[real]")


def test_the_licence_is_known() -> None:
    assert "CC BY-NC-SA 4.0" in licence_of(elpv.NAME)


@pytest.mark.skipif(find_spec("elpv_dataset") is None, reason="the package elpv-dataset is not installed: extra real")
def test_the_real_package() -> None:
    table = elpv.load()
    assert Counter(s.label for s in table) == {"no": 1508, "yes": 715}
    assert len(table.passed_over) == 401 and len(table) + 401 == 2624
    assert Counter(s.category for s in table) == {"mono": 901, "poly": 1322}
    assert sum(s.split == "train" for s in table) == 151
