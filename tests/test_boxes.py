"""Sets whose defects lie in boxes, or that have defective pictures only: drawn trees, and the real ones' counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pictures import draw, draw_mask, one_sentence, problem_kinds

from iadr1_lib.data import check_health, load_samples, read_mask, unmapped
from iadr1_lib.data.boxes import Box, largest_kind, read_boxes
from iadr1_lib.data.reading import find_layout
from iadr1_lib.evaluation import lending, references
from iadr1_lib.records import Sample
from iadr1_lib.reporting import sample_sheet

SIZE = (30, 20)  # of the pictures that are drawn


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def voc(*boxes: tuple[str, int, int, int, int], size: tuple[int, int] = SIZE) -> str:
    """A VOC file of boxes (name, xmin, ymin, xmax, ymax)."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in boxes
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"


def facts(samples: list[Sample]) -> list[tuple[str, str, str | None, str | None]]:
    return [(Path(s.image).stem, s.label, s.type, s.location) for s in samples]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "3 4 9 10 7\n"), ("a.txt", "7 0.2 0.35 0.2 0.3\n\n"), ("a.xml", voc(("7", 3, 4, 9, 10)))],
)
def test_three_forms_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    path, picture = write(tmp_path / name, text), draw(tmp_path / "a.png")
    (box,) = read_boxes(path, SIZE)
    assert box.kind == "7" and box[1:] == pytest.approx((3, 4, 9, 10))
    mask = read_mask(path, picture)
    assert mask.shape == (20, 30) and mask.sum() == 36 and mask[4:10, 3:9].all()


def test_boxes_over_the_edge_are_cut_and_those_without_area_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "-4 15 6 25 1\n8 3 8 9 2\n")
    assert read_boxes(path, SIZE) == [Box("1", 0, 15, 6, 20)]
    assert largest_kind([Box("small", 0, 0, 2, 2), Box("large", 0, 0, 3, 3)]) == "large"
    assert largest_kind([]) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "1 2 3\n"),
        ("a.txt", "40 2 50 9 1"),  # outside of the picture
        ("a.txt", "9 2 5 9 1"),
        ("a.txt", "nan 2 nan 9 1"),
        ("a.txt", "crack at the left"),
        ("a.xml", "<annotation><size>"),
        ("a.xml", "<annotation><object><name>x</name></object></annotation>"),
    ],
)
def test_what_is_no_list_of_boxes(tmp_path: Path, name: str, text: str) -> None:
    path, picture = write(tmp_path / name, text), draw(tmp_path / "a.png")
    one_sentence(lambda: read_mask(path, picture), path, "no list of boxes")


def test_rows_of_text_need_their_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "3 4 9 10 7")
    one_sentence(lambda: read_mask(path), "name the picture")
    one_sentence(lambda: read_mask(tmp_path / "gone.txt", draw(tmp_path / "a.png")), "gone.txt")


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    """DeepPCB with two groups of two boards."""
    root = tmp_path / "DeepPCB"
    for group in ("00041", "12000"):
        inner = root / "PCBData" / f"group{group}"
        for board in (f"{group}001", f"{group}002"):
            draw(inner / group / f"{board}_temp.jpg"), draw(inner / group / f"{board}_test.jpg")
            write(inner / f"{group}_not" / f"{board}.txt", "1 1 8 6 2\n22 12 24 14 6\n")
    return root


def test_a_board_of_deep_pcb_is_shown_beside_its_template(boards: Path) -> None:
    table = load_samples(boards)
    assert find_layout(boards) == "deep-pcb" and check_health(table) == []
    assert facts(table)[:2] == [("00041001_temp", "no", None, None), ("00041001_test", "yes", "short", "top left")]
    assert {(s.benchmark, s.category, s.split) for s in table} == {("DeepPCB", "circuit board", "test")}
    assert list(load_samples(boards / "PCBData", benchmark="DeepPCB")) == list(table)
    for kind in ("similar", "random"):
        chosen = references(table, table, kind=kind, templates=table.templates)
        for sample in table:
            (path,) = chosen[sample.image]
            if sample.label == "yes":
                assert path == Path(sample.image.replace("_test", "_temp"))
            else:  # another board's
                assert path.stem.endswith("_temp") and path != Path(sample.image)
        assert lending(table, chosen) == ["circuit board"]


def test_a_board_without_boxes_or_template(boards: Path) -> None:
    inner = boards / "PCBData" / "group00041"
    (inner / "00041_not" / "00041001.txt").unlink()
    (inner / "00041" / "00041001_temp.jpg").unlink()
    write(inner / "00041_not" / "00041002.txt", "no boxes")
    table = load_samples(boards, strict=False)
    assert len(table.templates) == 3
    assert problem_kinds(table) == {"defect without mask": 1, "unreadable": 1}
    one_sentence(lambda: load_samples(boards), "00041002.txt is no list of boxes")


@pytest.mark.parametrize("entry", ["00041_not/00041001.txt", "00041/00041001_temp.jpg"])
def test_links_that_lead_out_of_a_set_with_boxes(boards: Path, tmp_path: Path, entry: str) -> None:
    path = boards / "PCBData" / "group00041" / entry
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    table = load_samples(boards, strict=False)
    assert problem_kinds(table)["outside"] == 1
    held = {place for s in table for place in (s.image, s.mask)}
    assert not {str(path)} & (
        held | {str(p) for kinds in table.templates.values() for ps in kinds.values() for p in ps}
    )
    one_sentence(lambda: load_samples(boards), "leads out")


def test_wood_has_the_folders_of_mvtec_and_boxes(tmp_path: Path) -> None:
    root = tmp_path / "Wood"
    for name in ("train/good/1", "test/good/2", "test/defect/3", "test/defect/4"):
        draw(root / f"{name}.jpg")
    write(root / "classes.txt", "Live_Knot\nCrack\n")
    write(root / "boxes" / "3.txt", "0 0.9 0.9 0.05 0.05\n1 0.5 0.5 0.4 0.2\n1 0.2 0.2 0.001 0\n")
    table = load_samples(root)
    assert find_layout(root) == "wood-surface" and problem_kinds(table) == {"defect without mask": 1}
    assert facts(table) == [
        ("1", "no", None, None),
        ("3", "yes", "Crack", "center"),
        ("4", "yes", "defect", None),
        ("2", "no", None, None),
    ]
    assert {(s.benchmark, s.category) for s in table} == {("Wood", "Wood")}
    sample_sheet(table)  # the boxes are drawn as a mask is


def test_pascal_voc(tmp_path: Path) -> None:
    for name in ("pitted_1", "sound_2", "other_3", "lost_4"):
        draw(tmp_path / "IMAGES" / f"{name}.jpg")
    for name, text in (
        ("pitted_1", voc(("patches", 1, 1, 3, 3), ("pitted_surface", 20, 12, 30, 20))),
        ("sound_2", voc()),
        ("other_3", voc(("patches", 1, 1, 3, 3), size=(60, 40))),
    ):
        write(tmp_path / "ANNOTATIONS" / f"{name}.xml", text)
    assert find_layout(tmp_path) == "voc"
    table = load_samples(tmp_path, strict=False)
    assert sorted(facts(table)) == [
        ("other_3", "yes", "patches", "top left"),
        ("pitted_1", "yes", "pitted surface", "bottom right"),
        ("sound_2", "no", None, None),
    ]
    assert problem_kinds(table) == {"no label": 1, "mask size": 1}
    write(tmp_path / "ANNOTATIONS" / "lost_4.xml", voc())
    one_sentence(lambda: load_samples(tmp_path), "60 x 40 pixels and its picture 30 x 20")


def test_steel_with_defects_only(tmp_path: Path) -> None:
    for name in ("In_1", "Pa_2", "Sc_3"):
        draw(tmp_path / "saliency" / "Source Images" / f"{name}.png")
        draw_mask(tmp_path / "saliency" / "Ground truth" / f"{name}.png")
    types = ("inclusion", "patches", "scratches")
    assert [row[2:] for row in facts(load_samples(tmp_path / "saliency"))] == [(kind, "top left") for kind in types]
    for kind in ("iron sheet ash", "red iron", "slag inclusion"):
        draw(tmp_path / "x-sdd" / kind / "1.jpg")
    table = load_samples(tmp_path / "x-sdd")
    assert [row[1:] for row in facts(table)] == [
        ("yes", "iron sheet ash", None),
        ("yes", "red iron", None),
        ("yes", "slag inclusion", None),
    ]
    assert {(s.benchmark, s.source) for s in table} == {("x-sdd", "x-sdd")}


@pytest.mark.parametrize(
    ("name", "layout", "train", "good", "defective", "masks", "types"),
    [
        ("AITEX", "mvtec", 21, 28, 84, 84, 11),
        ("CrackForest", "mvtec", 0, 0, 50, 50, 1),
        ("DeepPCB", "deep-pcb", 0, 55, 55, 55, 6),
        ("ELPV", "elpv", 0, 75, 75, 0, 0),
        ("MPDD", "mvtec", 12, 13, 34, 34, 1),
        ("MVTec-AD", "mvtec", 43, 60, 179, 130, 20),
        ("NEU-DET", "voc", 0, 0, 180, 180, 6),
        ("Pill-Defects", "good-and-bad", 0, 25, 25, 0, 0),
        ("SD-saliency-900", "sd-saliency", 0, 0, 120, 120, 3),
        ("VisA", "visa", 0, 30, 40, 40, 5),
        ("WoodSurface", "wood-surface", 25, 50, 75, 75, 8),
        ("X-SDD", "x-sdd", 0, 0, 140, 0, 7),
    ],
)
def test_real_sets_have_the_counts_that_their_sources_state(
    shared: Path, name: str, layout: str, train: int, good: int, defective: int, masks: int, types: int
) -> None:
    root = shared / "real" / name
    table = load_samples(root)
    assert find_layout(root) == layout and not table.passed_over
    assert Counter((s.split, s.label) for s in table) == Counter(
        {("train", "no"): train, ("test", "no"): good, ("test", "yes"): defective}
    )
    assert sum(s.mask is not None for s in table) == masks
    assert len({s.type for s in table if s.type}) == types
    unplaced = [s for s in table if s.mask and not s.location]  # boxes of NEU-DET may fill the picture
    assert all(s.type in {"crazing", "rolled-in scale", "pitted surface", "patches"} for s in unplaced)
    assert not unmapped(table)
    assert len(table.templates) == (55 if name == "DeepPCB" else 0)
