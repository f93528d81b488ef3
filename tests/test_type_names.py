"""The table of type names: every row valid, every data set's own names as the table says."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import one_sentence

from iadr1_lib import world
from iadr1_lib.answer import DEFECT_TYPES, SYNONYMS
from iadr1_lib.data import category_of, load_mvtec, load_samples, type_names, unmapped
from iadr1_lib.records import Sample


def defect(name: str | None, benchmark: str = "mine", category: str = "part", source: str = "mvtec") -> Sample:
    return Sample("a.png", "yes", None, name, None, category, benchmark, "test", source)


@pytest.fixture(scope="module")
def rows(root: Path) -> list[dict[str, str]]:
    with (root / "data" / "type_names.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_is_valid_and_found(rows: list[dict[str, str]]) -> None:
    assert list(rows[0]) == type_names.COLUMNS and len(type_names.type_table()) == len(rows)
    for row in rows:
        assert row["type"] in {*DEFECT_TYPES, "other"}
        assert row["name"] == row["name"].strip() and None not in row.values()
        sample = defect(row["name"], row["benchmark"], row["category"])
        if "*" not in (row["benchmark"], row["name"]):
            assert category_of(sample) == row["type"], row
            assert not unmapped([sample])
    assert {row["benchmark"] for row in rows} - {"*"} == set(type_names.DATA_SETS)
    assert {row["type"] for row in rows} == {*DEFECT_TYPES, "other"}


def test_the_data_sets_are_whole(rows: list[dict[str, str]]) -> None:
    """MVTec-AD has 73 kinds of defects in 15 categories, VisA 12 classes, MPDD 6."""
    names = Counter(row["benchmark"] for row in rows)
    categories = {name: {r["category"] for r in rows if r["benchmark"] == name} for name in names}
    assert names["MVTec-AD"] == 73
    assert [len(categories[name]) for name in ("MVTec-AD", "VisA", "MPDD")] == [15, 12, 6]


@pytest.mark.parametrize("folder", ["MVTec-AD", "mvtec_ad", "mvtec", "MVTec", "mvtec_anomaly_detection", "archive"])
@pytest.mark.parametrize("name", ["scratch_neck", "scratch neck", "Scratch-Neck"])
def test_folders_and_names_may_be_spelt_otherwise(folder: str, name: str) -> None:
    assert category_of(defect(name, folder, "screw")) == "scratch"
    assert category_of(defect("Metal_Contamination", folder, "GRID")) == "presence of foreign objects"


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        (defect("thread", "MVTec-AD", "carpet"), "presence of foreign objects"),
        (defect("thread side", "MVTec-AD", "screw"), "damage"),
        (defect("burnt", "VisA", "cashew", "visa"), "contamination"),
        (defect("burnt", "VisA", "pcb4", "visa"), "damage"),
        (defect("bubble", "VisA", "capsules", "visa"), "other"),
        (defect("bubble,discolor,scratch", "my visa copy", "capsules", "visa"), "contamination"),
        (defect("other,chunk of wax missing", "VisA", "candle", "visa"), "missing parts"),
        (defect(None, "MPDD", "tubes", "index"), "other"),
        (defect(None, "anything", "Class3", "dagm"), "other"),
        (defect(None, "SDD", "SDD", "index"), "damage"),
        (defect("bad", "DTD", "Woven_001", "index"), "other"),
        (defect("fray", "magnetic tile", "magnetic tile", "magnetic-tile"), "abrasion"),
        (defect("scratch", "Real-IAD", "bolt", "real-iad"), "scratch"),
        (defect("XX", "Real-IAD", "bolt", "real-iad"), "other"),
        (defect(None), "other"),
        (defect("Surface_Scratch"), "scratch"),
        (defect("cracks"), "damage"),
        (defect("stains"), "contamination"),
        (defect("dents"), "deformation"),
        (defect("glorp"), "other"),
    ],
)
def test_names_of_every_data_set(sample: Sample, kind: str) -> None:
    assert category_of(sample) == kind


@pytest.mark.parametrize("category", DEFECT_TYPES)
def test_the_vocabulary_maps_to_itself(category: str) -> None:
    for name in (category, *SYNONYMS[category]):
        for written in (name, name.upper(), name.replace(" ", "_"), name.replace("-", " ")):
            assert category_of(defect(written)) == category


def test_a_normal_picture_has_no_type() -> None:
    with pytest.raises(ValueError, match="normal"):
        category_of(Sample("a.png", "no", None, None, None, "part", "KolektorSDD", "test", "kolektor-sdd"))


@given(st.text(max_size=20), st.text(max_size=10), st.text(max_size=10))
def test_any_name_gives_one_of_nine(name: str, benchmark: str, category: str) -> None:
    sample = defect(name, benchmark, category)
    assert category_of(sample) in {*DEFECT_TYPES, "other"}
    assert all(count == 1 or "," in name for count in unmapped([sample]).values())


def test_unmapped_names_are_counted() -> None:
    normal = Sample("a.png", "no", None, None, None, "part", "mine", "test", "mvtec")
    samples = [defect("glorp"), defect("Glorp"), defect("scratch,blip"), defect("bad"), defect(None), normal]
    assert unmapped(samples) == {("mine", "glorp"): 2, ("mine", "blip"): 1}


@pytest.mark.parametrize(
    "rows", ["*,*,x,scratch,\n*,*,y,scrach,", "*,*,z,hole,\n*,*,Z_,hole,", "*,*,z,hole,\n*,*,,hole,"]
)
def test_broken_tables_are_told_by_line(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "table.csv"
    one_sentence(lambda: type_names.type_table(path), "table.csv", "get the project's file")
    path.write_text(f"benchmark,category,name,type,note\n{rows}\n")
    one_sentence(lambda: type_names.type_table(path), "line 3")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("MVTec-AD", {"damage": 11, "scratch": 8}),
        ("MPDD", {"other": 12}),
        ("VisA", {"contamination": 9, "other": 3}),
        ("DAGM2007", {"other": 15}),
        ("KolektorSDD", {"damage": 14}),
        ("MagneticTile", {"hole": 115, "damage": 142, "abrasion": 135}),
    ],
)
def test_real_samples(shared: Path, name: str, counts: dict[str, int]) -> None:
    samples = [sample for sample in load_samples(shared / "samples" / name) if sample.label == "yes"]
    assert Counter(category_of(sample) for sample in samples) == counts
    assert not unmapped(samples)


@pytest.mark.parametrize("name", ["DAGM", "DTD", "MPDD", "SDD"])
def test_released_indexes_leave_no_name_out(shared: Path, name: str) -> None:
    path = shared / "reference" / "benchmark_index" / f"test_{name}_format.json"
    entries = {key: entry for key, entry in json.loads(path.read_text()).items() if "/good/" not in key}
    defects = [defect(None if (kind := Path(key).parent.name) in ("bad", "defect") else kind, name, key.split("/")[1])
               for key in entries]  # fmt: skip
    assert defects and not unmapped(defects)


def test_the_mini_world_maps_to_itself(tmp_path: Path) -> None:
    world.write_world(tmp_path, world.dev_families()[:2], 16, seed=1)
    for name in ("dev", *world.BENCHMARKS):
        samples = [sample for sample in load_mvtec(tmp_path, benchmark=name) if sample.label == "yes"]
        assert samples and all(category_of(sample) == sample.type for sample in samples)
        assert not unmapped(samples)
