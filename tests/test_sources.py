"""Readers of native layouts: real samples with the counts their sources state, drawn trees for the others."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iadr1_lib import sources
from iadr1_lib.answer import CELLS, DEFECT_TYPES
from iadr1_lib.benchmarks import Sample, check_health
from iadr1_lib.runs import UserError
from iadr1_lib.sources import find_layout, load_samples, read_index, write_index


def draw(path: Path, marked: bool = False, size: tuple[int, int] = (60, 40)) -> Path:
    """A grey picture, or a mask whose top left cell is marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8) if marked else np.full(size[::-1], 120, np.uint8)
    if marked:
        pixels[3:9, 3:9] = 255
    Image.fromarray(pixels).save(path)
    return path


def tally(samples: list[Sample]) -> Counter[str]:
    return Counter(sample.label for sample in samples)


# --- real samples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, layout, normal, defective, masks",
    [
        ("MVTec-AD", "mvtec", 9, 19, 19),
        ("MPDD", "mvtec", 11, 12, 12),
        ("VisA", "visa", 8, 12, 12),
        ("DAGM2007", "dagm", 0, 15, 8),
        ("KolektorSDD", "kolektor-sdd", 10, 14, 14),
        ("MagneticTile", "magnetic-tile", 952, 392, 392),
    ],
)
def test_real_samples_have_the_counts_that_their_sources_state(
    shared: Path, name: str, layout: str, normal: int, defective: int, masks: int
) -> None:
    root = shared / "samples" / name
    assert find_layout(root) == layout
    samples = load_samples(root)
    assert tally(samples) == Counter({"no": normal, "yes": defective})
    assert sum(sample.mask is not None for sample in samples) == masks
    for sample in samples:
        assert Path(sample.image).is_file() and sample.benchmark == name
        if sample.mask and sample.location is None:  # one tile's mask is empty, as the health report says
            assert [p.kind for p in check_health([sample])] == ["empty mask"]
        else:
            assert (sample.location in CELLS) == (sample.mask is not None)
        assert sample.label == "yes" or sample.type is None


def test_types_and_categories_of_real_samples(shared: Path) -> None:
    tiles = load_samples(shared / "samples" / "MagneticTile")
    counts = Counter(sample.type for sample in tiles)
    assert counts == {None: 952, "blowhole": 115, "uneven": 103, "break": 85, "crack": 57, "fray": 32}
    visa = load_samples(shared / "samples" / "VisA")
    assert {sample.category for sample in visa} == {"capsules"}
    assert all(sample.type for sample in visa if sample.label == "yes")
    assert {s.category for s in load_samples(shared / "samples" / "DAGM2007")} == {f"Class{n}" for n in range(1, 7)}


@pytest.mark.parametrize("name", ["MagneticTile/MT_Crack", "VisA/capsules", "DAGM2007/Class1", "MPDD/metal_plate"])
def test_one_category_can_be_named(shared: Path, name: str) -> None:
    samples = load_samples(shared / "samples" / name)
    assert samples and all(name in sample.image for sample in samples)
    assert {sample.benchmark for sample in samples} == {name.split("/")[0]}


# --- drawn trees ------------------------------------------------------------------------------------------


def test_dtd_synthetic_is_read_as_mvtec(tmp_path: Path) -> None:
    texture = tmp_path / "Woven_001"
    draw(texture / "train" / "good" / "000.png")
    draw(texture / "test" / "good" / "001.png")
    draw(texture / "test" / "bad" / "000.png")
    draw(texture / "ground_truth" / "bad" / "000_mask.png", marked=True)
    samples = load_samples(tmp_path)
    assert find_layout(tmp_path) == "mvtec"
    assert [(s.split, s.label, s.location) for s in samples] == [
        ("train", "no", None), ("test", "yes", "top left"), ("test", "no", None),
    ]  # fmt: skip


def real_iad(root: Path, image: str = "HS/S1/b.jpg") -> Path:
    for name in ("OK/S1/a.jpg", "HS/S1/b.jpg"):
        draw(root / "bolt" / name)
    draw(root / "bolt" / "HS/S1/b.png", marked=True)
    row = {"category": "bolt", "anomaly_class": "OK", "image_path": "OK/S1/a.jpg", "mask_path": None}
    bad = {"category": "bolt", "anomaly_class": "HS", "image_path": image, "mask_path": "HS/S1/b.png"}
    content = {"meta": {"normal_class": "OK", "prefix": "realiad_1024/bolt/"}, "train": [row], "test": [bad]}
    (root / "realiad_jsons").mkdir()
    (root / "realiad_jsons" / "bolt.json").write_text(json.dumps(content))
    return root


def test_real_iad_follows_its_index(tmp_path: Path) -> None:
    first, second = load_samples(real_iad(tmp_path))
    assert (first.label, first.split, first.type) == ("no", "train", None)
    assert (second.label, second.type, second.location, second.category) == ("yes", "scratch", "top left", "bolt")
    assert set(sources.REAL_IAD_TYPES.values()) == set(DEFECT_TYPES)


def test_an_index_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    draw(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="outside"):
        load_samples(real_iad(tmp_path / "data", image="../../secret.jpg"))


def test_visa_takes_types_and_splits_from_its_tables(tmp_path: Path) -> None:
    images = tmp_path / "candle" / "Data" / "Images"
    draw(images / "Normal" / "0.JPG")
    draw(images / "Normal" / "1.JPG")
    draw(images / "Anomaly" / "0.JPG")
    mask = Image.fromarray(np.pad(np.full((4, 4), 3, np.uint8), ((2, 34), (2, 54))))  # a class number, not 255
    (tmp_path / "candle" / "Data" / "Masks" / "Anomaly").mkdir(parents=True)
    mask.save(tmp_path / "candle" / "Data" / "Masks" / "Anomaly" / "0.png")
    paths = [f"candle/Data/Images/{name}.JPG" for name in ("Normal/0", "Normal/1", "Anomaly/0")]
    (tmp_path / "candle" / "image_anno.csv").write_text(
        f"image,label,mask\n{paths[0]},normal,\n{paths[1]},normal,\n{paths[2]},extra wax,x\n"
    )
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text(
        f"object,split,label,image,mask\ncandle,train,normal,{paths[0]},\ncandle,test,normal,{paths[1]},\n"
        f"candle,test,anomaly,{paths[2]},x\n"
    )
    found = {Path(s.image).relative_to(tmp_path).as_posix(): s for s in load_samples(tmp_path)}
    assert [found[path].split for path in paths] == ["train", "test", "test"]
    assert (found[paths[2]].type, found[paths[2]].location) == ("extra wax", "top left")


def test_any_folder_of_good_and_bad_pictures(tmp_path: Path) -> None:
    for name in ("ok/a.png", "ok/b.png", "NG/c.png", "deep scratch/d.png"):
        draw(tmp_path / name)
    draw(tmp_path / "masks" / "d.png", marked=True)
    samples = {Path(s.image).stem: s for s in load_samples(tmp_path)}
    assert {stem: (s.label, s.type, s.location) for stem, s in samples.items()} == {
        "a": ("no", None, None),
        "b": ("no", None, None),
        "c": ("yes", None, None),
        "d": ("yes", "deep scratch", "top left"),
    }
    crops = tmp_path / "crops"
    draw(crops / "test" / "good" / "kos01_Part1_2.png")  # KolektorSDD as cut into thirds: MVTec-AD's layout
    draw(crops / "test" / "defect" / "kos01_Part1_0.png")
    assert find_layout(crops) == "mvtec" and tally(load_samples(crops)) == {"no": 1, "yes": 1}


# --- index and meta files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, entries, normal", [("DAGM", 8050, 6996), ("DTD", 1304, 357), ("MPDD", 458, 176), ("SDD", 340, 286)]
)
def test_released_indexes_come_back_as_they_were(
    shared: Path, tmp_path: Path, name: str, entries: int, normal: int
) -> None:
    path = shared / "reference" / "benchmark_index" / f"test_{name}_format.json"
    found = read_index(path)
    assert len(found) == entries
    written = write_index(found, tmp_path / "index.json")
    assert json.loads(written.read_text()) == json.loads(path.read_text())
    samples = load_samples(path, strict=False)
    assert tally(samples)["no"] == normal and len(samples) == entries
    assert {sample.benchmark for sample in samples} == {name}
    assert len({sample.category for sample in samples}) == {"DAGM": 10, "DTD": 12, "MPDD": 6, "SDD": 1}[name]
    assert list(found) == [Path(s.image).relative_to(path.parent).as_posix() for s in samples]


def test_labels_of_an_index_are_its_own_not_the_folder_s(tmp_path: Path) -> None:
    draw(tmp_path / "X" / "part" / "test" / "good" / "0.png")
    options = {"Answer": "A", "Options": {"A": "Yes.", "B": "No."}}
    entry = {"image_path": "X/part/test/good/0.png", "conversation": [options]}
    (tmp_path / "index.json").write_text(json.dumps({entry["image_path"]: entry}))
    (sample,) = load_samples(tmp_path / "index.json")
    assert (sample.label, sample.category, sample.benchmark) == ("yes", "part", "X")
    assert "good in path" in {problem.kind for problem in check_health([sample])}


def test_health_tells_duplicates_across_data_sets(tmp_path: Path) -> None:
    draw(tmp_path / "one" / "good" / "a.png")
    draw(tmp_path / "one" / "bad" / "b.png", size=(61, 40))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    problems = check_health(load_samples(tmp_path / "one") + load_samples(tmp_path / "two"))
    assert Counter(p.kind for p in problems) == {"duplicate across data sets": 2, "defect without mask": 2}


def test_meta_file(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    draw(tmp_path / "b_mask.png", marked=True)
    rows = [
        {"img_path": "a.png", "mask_path": "", "cls_name": "nut", "specie_name": "good", "anomaly": 0},
        {"img_path": "b.png", "mask_path": "b_mask.png", "cls_name": "nut", "specie_name": "bent_leg", "anomaly": 1},
    ]
    for content in ({"nut": rows}, {"test": {"nut": rows}}):
        (tmp_path / "meta.json").write_text(json.dumps(content))
        good, bad = load_samples(tmp_path / "meta.json")
        assert (good.label, good.type, bad.label, bad.type, bad.location) == ("no", None, "yes", "bent leg", "top left")
        assert {good.category, good.split} == {"nut", "test"}


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "no JSON"),
        ("[]", "neither an index nor a meta file"),
        ('{"nut": [{"img_path": "a.png"}]}', "row 0 of nut"),
        ('{"a.png": {"conversation": []}}', "entry a.png"),
        ('{"nut": []}', "lists no pictures"),
    ],
)
def test_files_of_another_kind_are_told_in_one_sentence(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        load_samples(tmp_path / "odd.json")
    assert "\n" not in str(caught.value)


def test_folders_without_a_layout_and_unknown_layouts(tmp_path: Path) -> None:
    draw(tmp_path / "some.png")
    with pytest.raises(UserError, match="magnetic-tile"):
        load_samples(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        load_samples(tmp_path / "nowhere")
    with pytest.raises(UserError, match="choose from visa"):
        load_samples(tmp_path, layout="cifar")
