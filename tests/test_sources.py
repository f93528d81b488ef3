"""Readers of native layouts: real samples with the counts their sources state, drawn trees for the others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iadr1_lib.answer import CELLS, DEFECT_TYPES
from iadr1_lib.data import (
    KINDS,
    LAYOUTS,
    MOST,
    check_health,
    cut_kolektor,
    find_layout,
    health_table,
    load_samples,
    open_image,
    read_mask,
)
from iadr1_lib.data.index import REAL_IAD_TYPES, read_index
from iadr1_lib.errors import UserError
from iadr1_lib.files import write_json as write
from iadr1_lib.records import Sample


def write_index(entries, path):
    return write(path, entries)


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
        if sample.mask and sample.location is None:  # some tiles' masks are empty, as the health report says
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
    assert set(REAL_IAD_TYPES.values()) == set(DEFECT_TYPES)


def test_an_index_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    draw(tmp_path / "secret.jpg")
    (tmp_path / "data").mkdir()
    root = real_iad(tmp_path / "data", image="../../secret.jpg")
    with pytest.raises(UserError, match="outside"):
        load_samples(root)
    table = load_samples(root, strict=False)
    assert [s.label for s in table] == ["no"]
    assert health_table(check_health(table))["kind"].tolist() == ["outside", "passed over"]


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "a\0b.png", "link.png"])
def test_entries_of_an_index_that_lead_out(tmp_path: Path, path: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(draw(tmp_path / "secret.png"))
    draw(tmp_path / "data" / "good" / "a.png")
    index = write_index({name: entry(name, "B") for name in ("good/a.png", path)}, tmp_path / "data" / "index.json")
    table = load_samples(index, strict=False)
    assert len(table) == 1 and [p.kind for p in check_health(table)] == ["outside"]
    with pytest.raises(UserError, match="lies outside"):
        load_samples(index)


@pytest.mark.parametrize("row", [None, 3, {}, {"anomaly_class": "OK"}, {"anomaly_class": "OK", "image_path": 7}])
def test_broken_rows_of_real_iad(tmp_path: Path, row: object) -> None:
    root = real_iad(tmp_path)
    path = root / "realiad_jsons" / "bolt.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "test": [*content["test"], row]}))
    table = load_samples(root, strict=False)
    assert len(table) == 2 and [(p.kind, "row 1 of test" in p.message) for p in table.passed_over] == [
        ("broken row", True)
    ]


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


def test_visa_official_splits(tmp_path: Path) -> None:
    """1cls.csv counts, its neighbours for training on defects do not; one class alone is read the same."""
    names = [f"candle/Data/Images/{name}.JPG" for name in ("Normal/0", "Normal/1", "Anomaly/0")]
    for name in names:
        draw(tmp_path / name)
    (tmp_path / "split_csv").mkdir()
    for file, splits in (("1cls", ("train", "test", "test")), ("2cls_highshot", ("test", "train", "train"))):
        rows = "".join(f"candle,{split},x,{name},\n" for split, name in zip(splits, names, strict=True))
        (tmp_path / "split_csv" / f"{file}.csv").write_text("object,split,label,image,mask\n" + rows)
    shutil.copy(tmp_path / "split_csv" / "2cls_highshot.csv", tmp_path / "split_csv" / "2cls_fewshot.csv")
    whole, one = load_samples(tmp_path), load_samples(tmp_path / "candle")
    assert {Path(s.image).relative_to(tmp_path).as_posix(): s.split for s in whole} == dict(
        zip(names, ("train", "test", "test"), strict=True)
    )
    assert whole == [s for s in one] and whole[0].benchmark == tmp_path.name


@pytest.mark.parametrize("content", [b"image;label\na;b\n", b"\xff\xfe\x00", b""])
def test_visa_tables_of_another_kind(tmp_path: Path, content: bytes) -> None:
    """An empty table says nothing; one that cannot be read is a line of the report, or a sentence."""
    draw(tmp_path / "candle" / "Data" / "Images" / "Anomaly" / "0.JPG")
    (tmp_path / "candle" / "image_anno.csv").write_bytes(content)
    table = load_samples(tmp_path, strict=False)
    assert len(table) == 1 and [p.kind for p in table.passed_over] == ["broken row"] * bool(content)
    if content:
        with pytest.raises(UserError, match="columns image and label"):
            load_samples(tmp_path)


# --- KolektorSDD in thirds --------------------------------------------------------------------------------


def kolektor(root: Path) -> Path:
    """Two native pictures: one with a mark across the first cut, one normal."""
    for number, marked in ((1, True), (5, False)):
        pixels = np.arange(90, dtype=np.uint8)[:, None].repeat(20, axis=1) + np.uint8(number)
        mask = np.zeros((90, 20), np.uint8)
        mask[25:35, 4:8] = 255 * marked
        (root / "kos01").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "kos01" / f"Part{number}.jpg", quality=100)
        Image.fromarray(mask).save(root / "kos01" / f"Part{number}_label.bmp")
    return root


def entry(path: str, answer: str) -> dict[str, object]:
    return {"image_path": path, "conversation": [{"Answer": answer, "Options": {"A": "Yes.", "B": "No."}}]}


def test_kolektor_is_cut_into_thirds_with_their_masks(tmp_path: Path) -> None:
    cut = cut_kolektor(kolektor(tmp_path / "native"), tmp_path / "out")
    assert cut == tmp_path / "out" / "SDD" and find_layout(cut) == "kolektor-crops"
    crops = load_samples(cut)
    assert {(Path(s.image).stem, s.label, s.location) for s in crops} == {
        ("kos01_Part1_0", "yes", "bottom left"),
        ("kos01_Part1_1", "yes", "top left"),
        ("kos01_Part1_2", "no", None),
        *((f"kos01_Part5_{third}", "no", None) for third in range(3)),
    }
    assert {(s.category, s.type, s.split, s.source) for s in crops} == {("commutator", None, "test", "kolektor-crops")}
    assert load_samples(cut.parent) == load_samples(cut, benchmark="out")
    thirds = [np.asarray(open_image(cut / "test" / kind / f"kos01_Part1_{number}.png"))[..., 0]
              for number, kind in enumerate(("defect", "defect", "good"))]  # fmt: skip
    np.testing.assert_allclose(np.concatenate(thirds), np.arange(1, 91)[:, None].repeat(20, axis=1), atol=2)
    assert check_health(crops) == []


def test_an_index_chooses_and_files_the_thirds(tmp_path: Path) -> None:
    """The index's labels count: it may call a sliver of a mark good."""
    names = {"SDD/test/good/kos01_Part1_0.png": "B", "SDD/test/defect/kos01_Part1_1.png": "A"}
    index = tmp_path / "test_SDD_format.json"
    write_index({name: entry(name, answer) for name, answer in names.items()}, index)
    cut_kolektor(kolektor(tmp_path / "native"), tmp_path / "out", index)
    samples = load_samples(index, root=tmp_path / "out")
    assert [Path(s.image).relative_to(tmp_path / "out").as_posix() for s in samples] == list(names)
    assert [(s.label, s.benchmark) for s in samples] == [("no", "SDD"), ("yes", "SDD")]
    assert tally(load_samples(tmp_path / "out" / "SDD")) == {"no": 1, "yes": 1}
    lost = "SDD/test/good/kos07_Part1_0.png"
    write_index({**json.loads(index.read_text()), lost: entry(lost, "B")}, index)
    with pytest.raises(UserError, match="lacks the pictures of 1"):
        cut_kolektor(tmp_path / "native", tmp_path / "out", index)
    with pytest.raises(UserError, match="name KolektorSDD's folder"):
        cut_kolektor(tmp_path / "out", tmp_path / "again")
    write_index({"x": entry("x", "B"), "SDD/../kos01_Part1_0.png": entry("x", "B")}, index)
    with pytest.raises(UserError, match="the released SDD index"):
        cut_kolektor(tmp_path / "native", tmp_path / "out", index)


def test_thirds_with_labels_beside_them(tmp_path: Path) -> None:
    draw(tmp_path / "kos01_Part1_0.png")
    draw(tmp_path / "kos01_Part1_0_label.bmp", marked=True)
    draw(tmp_path / "kos01_Part1_1.png")
    table = load_samples(tmp_path, strict=False)
    assert find_layout(tmp_path) == "kolektor-crops" and [s.location for s in table] == ["top left"]
    assert [(p.kind, Path(p.image).stem) for p in table.passed_over] == [("no label", "kos01_Part1_1")]
    with pytest.raises(UserError, match="_label beside it"):
        load_samples(tmp_path)


def test_real_kolektor_pictures_are_cut(shared: Path, tmp_path: Path) -> None:
    native = load_samples(shared / "samples" / "KolektorSDD")
    chosen = [*[s for s in native if s.label == "yes"][:2], *[s for s in native if s.label == "no"][:1]]
    (tmp_path / "kosXX").mkdir()
    for image in (Path(sample.image) for sample in chosen):
        for name in (image.name, f"{image.stem}_label.bmp"):
            shutil.copy(image.with_name(name), tmp_path / "kosXX" / name)
    folder = cut_kolektor(tmp_path, tmp_path / "out") / "test"
    thirds = {path.stem: open_image(path).size for path in folder.rglob("*.png")}
    for sample in chosen:
        name = f"kosXX_{Path(sample.image).stem}"
        sizes = [thirds.pop(f"{name}_{third}") for third in range(3)]
        assert {width for width, _ in sizes} == {500}
        assert sum(height for _, height in sizes) == open_image(sample.image).height
        marked = [path for path in (folder / "defect").glob("*.png") if path.stem.startswith(f"{name}_")]
        assert bool(marked) == (sample.label == "yes")
    assert not thirds


# --- every layout under bad conditions ----------------------------------------------------------------------

PLACES = {  # layout: normal picture, defective picture, its mask
    "visa": ("nut/Data/Images/Normal/1.png", "nut/Data/Images/Anomaly/2.png", "nut/Data/Masks/Anomaly/2.png"),
    "dagm": ("Class1/Train/1.png", "Class1/Train/2.png", "Class1/Train/Label/2_label.png"),
    "kolektor-sdd": ("kos01/Part1.png", "kos01/Part2.png", "kos01/Part2_label.png"),
    "kolektor-crops": (
        "test/good/kos01_Part1_0.png",
        "test/defect/kos01_Part2_0.png",
        "ground_truth/defect/kos01_Part2_0_mask.png",
    ),
    "magnetic-tile": ("MT_Free/Imgs/1.jpg", "MT_Fray/Imgs/2.jpg", "MT_Fray/Imgs/2.png"),
    "real-iad": ("bolt/OK/S1/1.jpg", "bolt/HS/S1/2.jpg", "bolt/HS/S1/2.png"),
    "mvtec": ("nut/test/good/1.png", "nut/test/hole/2.png", "nut/ground_truth/hole/2_mask.png"),
    "good-and-bad": ("good/1.png", "bad/2.png", "masks/2.png"),
}


def draw_layout(root: Path, layout: str) -> tuple[Path, Path, Path]:
    good, bad, mask = (root / place for place in PLACES[layout])
    draw(good, size=(61, 40))
    draw(bad)
    draw(mask, marked=True)
    if layout == "kolektor-sdd":
        Image.new("L", (61, 40)).save(good.with_stem(f"{good.stem}_label"))
    if layout == "real-iad":
        rows = [
            {"anomaly_class": "OK", "image_path": "OK/S1/1.jpg"},
            {"anomaly_class": "HS", "image_path": "HS/S1/2.jpg", "mask_path": "HS/S1/2.png"},
        ]
        (root / "bolt.json").write_text(json.dumps({"meta": {}, "train": [], "test": rows}))
    return good, bad, mask


def kinds(root: Path) -> list[str]:
    """The kinds that a report on a folder counts."""
    return list(health_table(check_health(load_samples(root, strict=False)))["kind"])


def test_every_layout_is_drawn() -> None:
    assert set(PLACES) == set(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_and_sound(tmp_path: Path, layout: str) -> None:
    _, bad, mask = draw_layout(tmp_path / "naïve data 数据", layout)
    samples = load_samples(tmp_path / "naïve data 数据")
    assert tally(samples) == {"no": 1, "yes": 1} and check_health(samples) == []
    (defective,) = (sample for sample in samples if sample.label == "yes")
    assert (defective.image, defective.mask, defective.location) == (str(bad), str(mask), "top left")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_problem_is_told_in_every_layout(tmp_path: Path, layout: str) -> None:
    def broken(name: str) -> tuple[Path, Path, Path, Path]:
        return tmp_path / name, *draw_layout(tmp_path / name, layout)

    by_label = layout == "kolektor-sdd"  # there a mask that cannot be read leaves the label open

    root, good, _, _ = broken("text")
    good.write_text("hello")
    assert kinds(root) == ["unreadable"]

    root, _, bad, _ = broken("emptied")
    bad.write_bytes(b"")
    assert kinds(root) == ["unreadable"]

    root, _, _, mask = broken("mask")
    mask.write_bytes(mask.read_bytes()[:40])
    assert kinds(root) == (["no label"] if by_label else ["unreadable"])

    root, _, _, mask = broken("size")
    draw(mask, marked=True, size=(31, 40))
    assert kinds(root) == ["mask size"]

    root, _, _, mask = broken("blank")
    Image.new("L", (60, 40)).save(mask)
    assert kinds(root) == ([] if by_label else ["empty mask"])

    root, _, _, mask = broken("bare")
    mask.unlink()
    if layout == "dagm":  # there a picture without a label picture is normal
        mask.parent.mkdir(exist_ok=True)
        assert tally(load_samples(root)) == {"no": 2}
    else:
        missing = {"kolektor-sdd": "no label", "real-iad": "unreadable"}.get(layout, "defect without mask")
        assert kinds(root) == [missing]

    root, good, bad, _ = broken("twins")
    shutil.copy(good, bad)
    assert "duplicate" in kinds(root)

    root, _, _, _ = broken("good year")
    _, bad, _ = draw_layout(root / "inner" / "goodyear", layout)
    (told,) = (p for p in check_health(load_samples(root / "inner" / "goodyear")) if p.kind == "good in path")
    assert told.image == str(bad)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_links_in_every_layout(tmp_path: Path, layout: str) -> None:
    """A link that leads out is a line of the report, or refused; what it leads to is not read."""
    good, bad, mask = draw_layout(tmp_path / "data", layout)
    secret = draw(tmp_path / "secret.png")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert kinds(tmp_path / "data") == ["broken link"] and len(load_samples(tmp_path / "data")) == 2
    for path in (bad, mask):
        path.rename(tmp_path / "kept")
        path.symlink_to(secret)
        table = load_samples(tmp_path / "data", strict=False)
        assert "outside" in {problem.kind for problem in check_health(table)}
        assert not {str(path)} & {place for s in table for place in (s.image, s.mask)}
        with pytest.raises(UserError, match="leads out|lies outside|_label beside"):
            load_samples(tmp_path / "data")
        path.unlink()
        (tmp_path / "kept").rename(path)


def test_a_data_set_of_links_is_told_so(tmp_path: Path) -> None:
    draw_layout(tmp_path / "data", "mvtec")
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "nut").symlink_to(tmp_path / "data" / "nut")
    for strict in (True, False):
        with pytest.raises(UserError, match="leads out"):
            load_samples(tmp_path / "shown", strict=strict)


def test_a_hostile_folder_ends_in_a_report(tmp_path: Path) -> None:
    """Everything at once; the two sound pictures are still there."""
    root = tmp_path / "data"
    good, bad, _ = draw_layout(root, "mvtec")
    (good.parent / "text.png").write_text("no picture")
    (good.parent / "empty.png").write_bytes(b"")
    (good.parent / "folder.png").mkdir()
    draw(root / "nut" / "test" / "kind.png" / "0.png")
    (good.parent / "loop.png").symlink_to(good.parent / "loop.png")
    (root / "nut" / "test" / "round").symlink_to(root)
    (good.parent / "passwd.png").symlink_to("/etc/passwd")
    os.close(os.open(os.fsencode(good.parent) + b"/\xff\xfe.png", os.O_CREAT | os.O_WRONLY))
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(good.parent / "sixteen bits.png")
    Image.new("CMYK", (9, 9)).save(good.parent / "四色 印刷.jpg")
    draw(good.parent.joinpath(*["deep"] * 60) / "0.png")
    table = load_samples(root, strict=False)
    problems = check_health(table)
    counted = dict(zip(*health_table(problems)[["kind", "count"]].to_numpy().T, strict=True))
    assert counted == {
        "outside": 1,
        "broken link": 2,
        "folder like a picture": 2,
        "undecodable name": 1,
        "passed over": 1,
        "unreadable": 2,
    }
    assert len(table) - 2 == 4  # the two odd formats are well, text and empty file are rows of the report
    assert {problem.kind for problem in problems} <= set(KINDS)
    assert all("\n" not in problem.message and problem.message.encode() for problem in problems)
    with pytest.raises(UserError, match="passwd.png is a link that leads out"):
        load_samples(root)


def test_folders_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is locked, so the lock is played."""
    draw_layout(tmp_path, "mvtec")
    locked = draw(tmp_path / "nut" / "test" / "dent" / "0.png").parent
    listdir = os.listdir

    def refuse_one(path: object) -> list[str]:
        if Path(str(path)) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "listdir", refuse_one)
    assert kinds(tmp_path) == ["unreadable"]
    with pytest.raises(UserError, match="cannot be listed"):
        load_samples(tmp_path)
    locked = tmp_path
    with pytest.raises(UserError, match="cannot be listed"):
        load_samples(tmp_path, strict=False)


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


def test_a_mask_that_fits_several_pictures_is_nobody_s(tmp_path: Path) -> None:
    """The crack's mask told of a dent would be an invented reasoning."""
    for number, name in enumerate(("good/0", "crack/0", "crack/1", "dent/0", "dent/2")):
        draw(tmp_path / f"{name}.png", size=(60 + number, 40))
    draw(tmp_path / "masks" / "0.png", marked=True)
    draw(tmp_path / "masks" / "1.png", marked=True, size=(62, 40))
    table = load_samples(tmp_path)
    assert [(s.type, s.location) for s in table if s.label == "yes"] == [
        ("crack", None), ("crack", "top left"), ("dent", None), ("dent", None),
    ]  # fmt: skip
    assert Counter(p.kind for p in check_health(table)) == {"ambiguous mask": 2, "defect without mask": 3}
    (tmp_path / "masks" / "0.png").unlink()
    draw(tmp_path / "masks" / "crack" / "0.png", marked=True, size=(61, 40))
    draw(tmp_path / "dent" / "annotations" / "0.png", marked=True, size=(63, 40))
    found = [(s.type, Path(s.image).stem, s.location) for s in load_samples(tmp_path) if s.location]
    assert found == [("crack", "0", "top left"), ("dent", "0", "top left")]


@pytest.mark.parametrize("layout", ["visa", "mvtec", "dagm", "kolektor-sdd", "kolektor-crops", "magnetic-tile"])
def test_two_pictures_of_one_stem_have_no_mask_in_any_layout(tmp_path: Path, layout: str) -> None:
    _, bad, _ = draw_layout(tmp_path, layout)
    draw(bad.with_suffix(".bmp"), size=(62, 40))
    table = load_samples(tmp_path, strict=False)
    assert not any(s.mask for s in table)
    wanted = {"kolektor-sdd": "no label"}.get(layout, "ambiguous mask")
    assert Counter(p.kind for p in table.passed_over)[wanted] == 2
    if layout != "kolektor-sdd":
        assert tally(table) == {"no": 1, "yes": 2}


@pytest.mark.parametrize("masks", ["annotations", "Ground Truth", "segmentation", "GT", "bad_masks"])
def test_folders_of_masks_are_no_defects(tmp_path: Path, masks: str) -> None:
    for name in ("good/0.png", "bad/0.png"):
        draw(tmp_path / name)
    draw(tmp_path / masks / "0.png", marked=True)
    assert [(s.label, s.type, s.location) for s in load_samples(tmp_path)] == [
        ("yes", None, "top left"), ("no", None, None),
    ]  # fmt: skip


def test_no_sound_mask_of_a_real_set_marks_too_much_to_say_where(shared: Path) -> None:
    files = list((shared / "real" / "SD-saliency-900" / "Ground truth").rglob("*.png"))
    for root in (*(shared / "samples").iterdir(), *(shared / "real").iterdir()):
        with contextlib.suppress(UserError):  # no layout that can be read
            files += [Path(sample.mask) for sample in load_samples(root, strict=False) if sample.mask]
    shares = [read_mask(file).mean() for file in files]
    assert len(shares) > 800 and 0.6 < max(shares) < 0.65 < MOST


def test_normal_pictures_of_dagm_are_not_defective_by_a_part_of_a_word(tmp_path: Path) -> None:
    draw_layout(tmp_path, "dagm")
    draw(tmp_path / "Class1" / "no_defect" / "3.png")
    assert tally(load_samples(tmp_path)) == {"no": 2, "yes": 1}


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


def test_the_word_good_in_the_paths_of_an_index(tmp_path: Path) -> None:
    """Both ways: it may stand there by accident, and it may be missing."""
    answers = {"X/goodyear/test/ok/0.png": "B", "X/tyre/test/ok/1.png": "B", "X/tyre/test/good/2.png": "B"}
    for number, name in enumerate(answers):
        draw(tmp_path / name, size=(50 + number, 40))
    index = write_index({name: entry(name, answer) for name, answer in answers.items()}, tmp_path / "index.json")
    found = [(p.kind, Path(p.image).stem) for p in check_health(load_samples(index))]
    assert found == [("good by accident", "0"), ("no good in path", "1")]


WRITERS = {
    "plain": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "backslashes": lambda text: text.replace("/", "\\\\").encode(),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["index", "meta", "real-iad"])
def test_files_of_other_systems_say_the_same(tmp_path: Path, kind: str, writer: str) -> None:
    good, bad, mask = "X/part/test/good/0.png", "X/part/test/bent/0.png", "X/part/ground_truth/bent/0.png"
    for number, name in enumerate((good, bad, mask)):
        draw(tmp_path / name, marked=number == 2)
    draw(tmp_path / "X/part/train/good/1.png")
    templates = {"similar_templates": ["X/part/train/good/1.png"]}
    index = {good: entry(good, "B"), bad: {**entry(bad, "A"), "mask_path": mask, **templates}}
    rows = [{"img_path": good, "anomaly": 0}, {"img_path": bad, "mask_path": mask, "specie_name": "bent", "anomaly": 1}]
    iad = [
        {"image_path": good, "anomaly_class": "OK"},
        {"image_path": bad, "mask_path": mask, "anomaly_class": "HS", "category": "part"},
    ]
    content = {"index": index, "meta": {"part": rows}, "real-iad": {"meta": {"prefix": "."}, "train": [], "test": iad}}[
        kind
    ]
    (tmp_path / "file.json").write_bytes(WRITERS[writer](json.dumps(content)))
    table = load_samples(tmp_path if kind == "real-iad" else tmp_path / "file.json", layout="real-iad")
    assert [(s.label, s.image, s.location) for s in table] == [
        ("no", str(tmp_path / good), None), ("yes", str(tmp_path / bad), "top left"),
    ]  # fmt: skip
    assert table[1].mask == str(tmp_path / mask)
    if kind == "index":
        assert table.templates[table[1].image]["similar"] == [tmp_path / "X/part/train/good/1.png"]


def test_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"a.png": entry("a.png", "A")}), encoding="utf-16")
    with pytest.raises(UserError, match="index.json is UTF-16") as caught:
        load_samples(tmp_path / "index.json")
    assert "\n" not in str(caught.value)


def test_the_question_with_yes_and_no_need_not_be_the_first(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    asked = entry("a.png", "A")
    others = [{"Question": "What is shown?"}, {"Answer": "B", "Options": {"A": "hole", "B": "No.", "C": 3}}]
    asked["conversation"] = [*others, *asked["conversation"]]  # type: ignore[misc]
    (tmp_path / "index.json").write_text(json.dumps({"a.png": asked}))
    assert [s.label for s in load_samples(tmp_path / "index.json")] == ["yes"]


@pytest.mark.parametrize("mask", ["gone.png", "../outside.png", 3])
def test_masks_of_an_index_that_cannot_be_read_are_told(tmp_path: Path, mask: object) -> None:
    draw(tmp_path / "data" / "a.png")
    draw(tmp_path / "outside.png", marked=True)
    path = tmp_path / "data" / "index.json"
    path.write_text(json.dumps({"a.png": {**entry("a.png", "A"), "mask_path": mask}}))
    with pytest.raises(UserError, match=r"gone\.png|lies outside|a\.png has no question"):
        load_samples(path)


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
        ('{"nut": 3}', "neither an index nor a meta file"),
        ('{"a": {"image_path": 5, "conversation": [{"Answer": "A", "Options": {"A": "Yes."}}]}}', "entry a "),
        ('{"a": {"image_path": "a", "conversation": [{"Answer": "A", "Options": {"A": 1}}]}}', "entry a "),
        ("[" * 100_000, "no JSON"),
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
