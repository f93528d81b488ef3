"""Readers of folder layouts: real samples with the counts their sources state, drawn trees for the others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import draw, draw_mask, one_sentence, problem_kinds
from pictures import index_entry as entry
from PIL import Image

from iadr1_lib.answer import CELLS
from iadr1_lib.data import category_of, check_health, cut_kolektor, health_table, load_samples, open_image, read_mask
from iadr1_lib.data.boxes import is_boxes
from iadr1_lib.data.layouts import LAYOUTS
from iadr1_lib.data.masks import MOST
from iadr1_lib.data.reading import find_layout
from iadr1_lib.data.table import KINDS
from iadr1_lib.errors import UserError
from iadr1_lib.files import write_json
from iadr1_lib.records import Sample


def labels(samples: list[Sample]) -> Counter[str]:
    return Counter(sample.label for sample in samples)


@pytest.mark.parametrize(
    "name, layout, normal, defective, masks, types, part",
    [
        ("MVTec-AD", "mvtec", 9, 19, 19, 5, "screw"),
        ("MPDD", "mvtec", 11, 12, 12, 1, "metal_plate"),
        ("VisA", "visa", 8, 12, 12, None, "capsules"),
        ("DAGM2007", "dagm", 0, 15, 8, 0, "Class1"),
        ("KolektorSDD", "kolektor-sdd", 10, 14, 14, 0, None),
        ("MagneticTile", "magnetic-tile", 952, 392, 392, 5, "MT_Crack"),
    ],
)
def test_real_samples_have_the_counts_that_their_sources_state(
    shared: Path,
    name: str,
    layout: str,
    normal: int,
    defective: int,
    masks: int,
    types: int | None,
    part: str | None,
) -> None:
    root = shared / "samples" / name
    assert find_layout(root) == layout
    samples = load_samples(root)
    assert labels(samples) == Counter({"no": normal, "yes": defective})
    assert sum(sample.mask is not None for sample in samples) == masks
    assert types is None or len({s.type for s in samples if s.type}) == types
    for sample in samples:
        assert Path(sample.image).is_file() and sample.benchmark == name
        if sample.mask and sample.location is None:  # some tiles' masks are empty, as the health report says
            assert [p.kind for p in check_health([sample])] == ["empty mask"]
        else:
            assert (sample.location in CELLS) == (sample.mask is not None)
        assert sample.label == "yes" or sample.type is None
    if part:  # one category alone
        assert load_samples(root / part) == [sample for sample in samples if f"/{part}/" in sample.image]


def test_no_sound_mask_of_a_real_set_marks_too_much_to_say_where(shared: Path) -> None:
    files = []
    for root in (*(shared / "samples").iterdir(), *(shared / "real").iterdir()):
        with contextlib.suppress(UserError):  # a file beside the sets
            files += [Path(sample.mask) for sample in load_samples(root, strict=False) if sample.mask]
    shares = [read_mask(file).mean() for file in files if not is_boxes(file)]  # boxes may be loose
    assert len(shares) > 800 and 0.6 < max(shares) < 0.65 < MOST


# Sets with boxes, without masks or without normal pictures: tests/test_boxes.py and tests/test_elpv.py read them.
OTHERS = ("elpv", "deep-pcb", "voc", "sd-saliency", "x-sdd", "wood-surface")
PLACES = {  # layout: normal picture, defective picture, its mask
    "visa": ("nut/Data/Images/Normal/1.png", "nut/Data/Images/Anomaly/2.png", "nut/Data/Masks/Anomaly/2.png"),
    "dagm": ("Class1/Train/1.png", "Class1/Train/2.png", "Class1/Train/Label/2_label.png"),
    "kolektor-sdd": ("kos01/Part1.png", "kos01/Part2.png", "kos01/Part2_label.png"),
    "magnetic-tile": ("MT_Free/Imgs/1.jpg", "MT_Fray/Imgs/2.jpg", "MT_Fray/Imgs/2.png"),
    "real-iad": ("bolt/OK/S1/1.jpg", "bolt/HS/S1/2.jpg", "bolt/HS/S1/2.png"),
    "mvtec": ("nut/test/good/1.png", "nut/test/hole/2.png", "nut/ground_truth/hole/2_mask.png"),
    "good-and-bad": ("good/1.png", "bad/2.png", "masks/2.png"),
}


def draw_layout(root: Path, layout: str) -> tuple[Path, Path, Path]:
    good, bad, mask = (root / place for place in PLACES[layout])
    draw(good), draw(bad), draw_mask(mask)
    if layout == "kolektor-sdd":
        draw_mask(good.with_stem(f"{good.stem}_label"), None)
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
    assert {*PLACES, *OTHERS} == set(LAYOUTS)


@pytest.mark.parametrize("layout", PLACES)
def test_every_layout_is_read_and_sound(tmp_path: Path, layout: str) -> None:
    _, bad, mask = draw_layout(tmp_path / "naïve data 数据", layout)
    samples = load_samples(tmp_path / "naïve data 数据")
    assert labels(samples) == {"no": 1, "yes": 1} and check_health(samples) == []
    (defective,) = (sample for sample in samples if sample.label == "yes")
    assert (defective.image, defective.mask, defective.location) == (str(bad), str(mask), "top left")
    assert defective.source == layout


DAMAGE: dict[str, tuple[Callable[[Path, Path, Path], object], list[str], dict[str, list[str]]]] = {
    # what happens to (good, bad, mask), the kinds that a report then counts, and those of layouts that differ
    "text": (lambda good, bad, mask: good.write_text("hello"), ["unreadable"], {}),
    "emptied": (lambda good, bad, mask: bad.write_bytes(b""), ["unreadable"], {}),
    "cut mask": (
        lambda good, bad, mask: mask.write_bytes(mask.read_bytes()[:40]),
        ["unreadable"],
        {"kolektor-sdd": ["no label"]},  # there a mask that cannot be read leaves the label open
    ),
    "size": (lambda good, bad, mask: draw_mask(mask, size=(31, 20)), ["mask size"], {}),
    "blank mask": (lambda good, bad, mask: draw_mask(mask, None), ["empty mask"], {"kolektor-sdd": []}),
    "no mask": (
        lambda good, bad, mask: mask.unlink(),
        ["defect without mask"],
        {"kolektor-sdd": ["no label"], "real-iad": ["unreadable"], "dagm": []},
    ),
    "twins": (lambda good, bad, mask: shutil.copy(good, bad), ["duplicate"], {}),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("layout", PLACES)
def test_every_kind_of_problem_is_listed_in_every_layout(tmp_path: Path, layout: str, damage: str) -> None:
    harm, usual, others = DAMAGE[damage]
    harm(*draw_layout(tmp_path / "data", layout))
    assert kinds(tmp_path / "data") == others.get(layout, usual)


@pytest.mark.parametrize("layout", PLACES)
def test_good_in_the_path_of_a_defect_is_listed_in_every_layout(tmp_path: Path, layout: str) -> None:
    _, bad, _ = draw_layout(tmp_path / "goodyear", layout)
    (problem,) = (p for p in check_health(load_samples(tmp_path / "goodyear")) if p.kind == "good in path")
    assert problem.image == str(bad)


@pytest.mark.parametrize("layout", PLACES)
def test_links_in_every_layout(tmp_path: Path, layout: str) -> None:
    """A link that leads out is a line of the report, or refused; what it leads to is not read."""
    _, bad, mask = draw_layout(tmp_path / "data", layout)
    secret = draw(tmp_path / "secret.png")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert kinds(tmp_path / "data") == ["broken link"] and len(load_samples(tmp_path / "data")) == 2
    for path in (bad, mask):
        path.rename(tmp_path / "kept")
        path.symlink_to(secret)
        table = load_samples(tmp_path / "data", strict=False)
        assert "outside" in problem_kinds(table)
        assert not {str(path)} & {place for s in table for place in (s.image, s.mask)}
        with pytest.raises(UserError, match="leads out|lies outside|_label beside"):
            load_samples(tmp_path / "data")
        path.unlink()
        (tmp_path / "kept").rename(path)


@pytest.mark.parametrize("layout", ["visa", "mvtec", "dagm", "kolektor-sdd", "magnetic-tile"])
def test_two_pictures_of_one_stem_have_no_mask_in_any_layout(tmp_path: Path, layout: str) -> None:
    _, bad, _ = draw_layout(tmp_path, layout)
    draw(bad.with_suffix(".bmp"))
    table = load_samples(tmp_path, strict=False)
    assert not any(s.mask for s in table)
    by_label = layout == "kolektor-sdd"
    assert Counter(p.kind for p in table.passed_over)["no label" if by_label else "ambiguous mask"] == 2
    assert labels(table) == ({"no": 1} if by_label else {"no": 1, "yes": 2})


def test_a_hostile_folder_ends_in_a_report(tmp_path: Path) -> None:
    """Everything at once; the two sound pictures are still there."""
    root = tmp_path / "data"
    good, _, _ = draw_layout(root, "mvtec")
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
    assert problem_kinds(table) == {
        "outside": 1,
        "broken link": 2,
        "folder like a picture": 2,
        "undecodable name": 1,
        "passed over": 1,
        "unreadable": 2,
    }
    assert len(table) - 2 == 4  # the two odd formats are well, text and empty file are rows of the report
    problems = check_health(table)
    assert {problem.kind for problem in problems} <= set(KINDS)
    assert all("\n" not in problem.message and problem.message.encode() for problem in problems)
    one_sentence(lambda: load_samples(root), "passwd.png is a link that leads out")


def test_folders_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is locked, so the lock is simulated."""
    draw_layout(tmp_path, "mvtec")
    locked = draw(tmp_path / "nut" / "test" / "dent" / "0.png").parent
    listdir = os.listdir

    def refuse_one(path: object) -> list[str]:
        if Path(str(path)) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "listdir", refuse_one)
    assert kinds(tmp_path) == ["unreadable"]
    one_sentence(lambda: load_samples(tmp_path), "cannot be listed")
    locked = tmp_path
    one_sentence(lambda: load_samples(tmp_path, strict=False), "cannot be listed")


def test_folders_without_a_layout_and_unknown_layouts(tmp_path: Path) -> None:
    draw(tmp_path / "some" / "some.png")
    one_sentence(lambda: load_samples(tmp_path / "some"), "magnetic-tile")
    one_sentence(lambda: load_samples(tmp_path / "nowhere"), "no folder")
    one_sentence(lambda: load_samples(tmp_path, layout="cifar"), "choose from visa")
    draw_layout(tmp_path / "data", "mvtec")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "nut").symlink_to(tmp_path / "data" / "nut")
    for strict in (True, False):
        one_sentence(lambda strict=strict: load_samples(tmp_path / "links", strict=strict), "leads out")


def test_any_folder_of_good_and_bad_pictures(tmp_path: Path) -> None:
    for name in ("ok/a.png", "ok/b.png", "NG/c.png", "deep scratch/d.png"):
        draw(tmp_path / name)
    draw_mask(tmp_path / "masks" / "d.png")
    assert {Path(s.image).stem: (s.label, s.type, s.location) for s in load_samples(tmp_path)} == {
        "a": ("no", None, None),
        "b": ("no", None, None),
        "c": ("yes", None, None),
        "d": ("yes", "deep scratch", "top left"),
    }


def test_a_mask_that_fits_several_pictures_is_nobody_s(tmp_path: Path) -> None:
    """The crack's mask taken for the dent's would be an invented reasoning."""
    for name in ("good/0", "crack/0", "crack/1", "dent/0", "dent/2"):
        draw(tmp_path / f"{name}.png")
    draw_mask(tmp_path / "masks" / "0.png")
    draw_mask(tmp_path / "masks" / "1.png")
    table = load_samples(tmp_path)
    assert [(s.type, s.location) for s in table if s.label == "yes"] == [
        ("crack", None), ("crack", "top left"), ("dent", None), ("dent", None),
    ]  # fmt: skip
    assert problem_kinds(table) == {"ambiguous mask": 2, "defect without mask": 3}
    (tmp_path / "masks" / "0.png").unlink()
    draw_mask(tmp_path / "masks" / "crack" / "0.png")
    draw_mask(tmp_path / "dent" / "annotations" / "0.png")
    placed = [(s.type, Path(s.image).stem, s.location) for s in load_samples(tmp_path) if s.location]
    assert placed == [("crack", "0", "top left"), ("dent", "0", "top left")]


@pytest.mark.parametrize("masks", ["annotations", "Ground Truth", "segmentation", "GT", "bad_masks"])
def test_folders_of_masks_are_no_defects(tmp_path: Path, masks: str) -> None:
    draw(tmp_path / "good/0.png"), draw(tmp_path / "bad/0.png"), draw_mask(tmp_path / masks / "0.png")
    facts = [(s.label, s.type, s.location) for s in load_samples(tmp_path)]
    assert facts == [("yes", None, "top left"), ("no", None, None)]


def test_normal_pictures_of_dagm_are_not_defective_by_a_part_of_a_word(tmp_path: Path) -> None:
    draw_layout(tmp_path, "dagm")
    draw(tmp_path / "Class1" / "no_defect" / "3.png")
    assert labels(load_samples(tmp_path)) == {"no": 2, "yes": 1}


def test_visa_takes_types_and_splits_from_its_tables(tmp_path: Path) -> None:
    """1cls.csv counts, its neighbours for training on defects do not; one class alone is read the same."""
    paths = [f"candle/Data/Images/{name}.JPG" for name in ("Normal/0", "Normal/1", "Anomaly/0")]
    for path in paths:
        draw(tmp_path / path)
    draw_mask(tmp_path / "candle/Data/Masks/Anomaly/0.png")
    (tmp_path / "candle" / "image_anno.csv").write_text(
        f"image,label,mask\n{paths[0]},normal,\n{paths[1]},normal,\n{paths[2]},extra wax,x\n"
    )
    (tmp_path / "split_csv").mkdir()
    for file, splits in (("1cls", ("train", "test", "test")), ("2cls_highshot", ("test", "train", "train"))):
        rows = "".join(f"candle,{split},x,{path},\n" for split, path in zip(splits, paths, strict=True))
        (tmp_path / "split_csv" / f"{file}.csv").write_text("object,split,label,image,mask\n" + rows)
    table = load_samples(tmp_path)
    by_path = {Path(s.image).relative_to(tmp_path).as_posix(): s for s in table}
    assert [by_path[path].split for path in paths] == ["train", "test", "test"]
    assert (by_path[paths[2]].type, by_path[paths[2]].location) == ("extra wax", "top left")
    assert load_samples(tmp_path / "candle") == list(table) and table[0].benchmark == tmp_path.name


@pytest.mark.parametrize("content", [b"image;label\na;b\n", b"\xff\xfe\x00", b""])
def test_visa_tables_of_another_kind(tmp_path: Path, content: bytes) -> None:
    """An empty table says nothing; one that cannot be read is a line of the report, or a sentence."""
    draw(tmp_path / "candle" / "Data" / "Images" / "Anomaly" / "0.JPG")
    (tmp_path / "candle" / "image_anno.csv").write_bytes(content)
    table = load_samples(tmp_path, strict=False)
    assert len(table) == 1 and [p.kind for p in table.passed_over] == ["broken row"] * bool(content)
    if content:
        one_sentence(lambda: load_samples(tmp_path), "columns image and label")


def kolektor(root: Path) -> Path:
    """Two native pictures: one with a mark across the first cut, one normal."""
    for number, box in ((1, (4, 25, 8, 35)), (5, None)):
        pixels = np.arange(90, dtype=np.uint8)[:, None].repeat(20, axis=1) + np.uint8(number)
        draw_mask(root / "kos01" / f"Part{number}_label.bmp", box, (20, 90))
        Image.fromarray(pixels).save(root / "kos01" / f"Part{number}.jpg", quality=100)
    return root


def test_kolektor_is_cut_into_thirds_with_their_masks(tmp_path: Path) -> None:
    cut = cut_kolektor(kolektor(tmp_path / "native"), tmp_path / "out")
    assert cut == tmp_path / "out" / "SDD"
    crops = load_samples(cut, benchmark="SDD")
    assert {(Path(s.image).stem, s.label, s.location) for s in crops} == {
        ("kos01_Part1_0", "yes", "bottom left"),
        ("kos01_Part1_1", "yes", "top left"),
        ("kos01_Part1_2", "no", None),
        *((f"kos01_Part5_{third}", "no", None) for third in range(3)),
    }
    assert {category_of(s) for s in crops if s.label == "yes"} == {"damage"}
    thirds = [np.asarray(open_image(cut / "test" / kind / f"kos01_Part1_{number}.png"))[..., 0]
              for number, kind in enumerate(("defect", "defect", "good"))]  # fmt: skip
    np.testing.assert_allclose(np.concatenate(thirds), np.arange(1, 91)[:, None].repeat(20, axis=1), atol=2)
    assert check_health(crops) == []


def test_an_index_chooses_and_files_the_thirds(tmp_path: Path) -> None:
    """The index's labels count: it may call a sliver of a mark good."""

    native, out, index = kolektor(tmp_path / "native"), tmp_path / "out", tmp_path / "test_SDD_format.json"
    entries = {
        name: entry(name, answer)
        for name, answer in (("SDD/test/good/kos01_Part1_0.png", "B"), ("SDD/test/defect/kos01_Part1_1.png", "A"))
    }
    write_json(index, entries)
    cut_kolektor(native, out, index)
    samples = load_samples(index, root=out)
    assert [Path(s.image).relative_to(out).as_posix() for s in samples] == list(entries)
    assert [(s.label, s.benchmark) for s in samples] == [("no", "SDD"), ("yes", "SDD")]
    assert labels(load_samples(out / "SDD")) == {"no": 1, "yes": 1}
    lost = "SDD/test/good/kos07_Part1_0.png"
    write_json(index, {**entries, lost: entry(lost, "B")})
    one_sentence(lambda: cut_kolektor(native, out, index), "lacks the pictures of 1")
    one_sentence(lambda: cut_kolektor(out, tmp_path / "again"), "kosNN/PartN.jpg")
    write_json(index, {"x": entry("x", "B"), "SDD/../kos01_Part1_0.png": entry("x", "B")})
    one_sentence(lambda: cut_kolektor(native, out, index), "the released SDD index")
