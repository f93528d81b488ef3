"""MVTec-AD's layout read and checked: rows, the folder's boundary, faults, health and leaks."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import draw, draw_mask, one_sentence, problem_kinds
from PIL import Image

from iadr1_lib.data import (
    category_of,
    check_health,
    content_hash,
    counts,
    health_table,
    leakage,
    load_mvtec,
    missing_label,
    read_mask,
    sample_problems,
    samples_table,
    without_place,
)
from iadr1_lib.data.table import KINDS
from iadr1_lib.records import Sample


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One category: 1 training, 2 good, 2 broken pictures with masks and 1 bent one without."""
    part = tmp_path / "plant" / "bolt"
    for name in ("train/good/000", "test/good/10", "test/good/2", "test/missing_parts/000", "test/bent_tip/000"):
        draw(part / f"{name}.png")
    draw(part / "test/missing_parts/001.jpg")
    draw_mask(part / "ground_truth/missing_parts/000_mask.png")
    draw_mask(part / "ground_truth/missing_parts/001.png", (25, 15, 30, 20))
    return tmp_path / "plant"


def test_load_mvtec_reads_labels_types_places_and_splits(tree: Path) -> None:
    samples = load_mvtec(tree)
    assert [(Path(s.image).name, s.split, s.label, s.type, s.location) for s in samples] == [
        ("000.png", "train", "no", None, None),
        ("000.png", "test", "yes", "bent tip", None),
        ("2.png", "test", "no", None, None),
        ("10.png", "test", "no", None, None),
        ("000.png", "test", "yes", "missing parts", "top left"),
        ("001.jpg", "test", "yes", "missing parts", "bottom right"),
    ]
    assert {(s.benchmark, s.category, s.source) for s in samples} == {("plant", "bolt", "mvtec")}
    assert {sample.benchmark for sample in load_mvtec(tree, "mine")} == {"mine"}


def test_one_category_gives_the_same_rows_as_its_data_set(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tree / "nut/test/good/0.png")
    of_bolt = [sample for sample in load_mvtec(tree) if sample.category == "bolt"]
    assert load_mvtec(tree / "bolt") == of_bolt
    monkeypatch.chdir(tree / "bolt")
    facts = [(s.category, s.benchmark, s.location) for s in load_mvtec(".")]
    assert facts == [(s.category, s.benchmark, s.location) for s in of_bolt]


def test_other_files_and_hidden_files_are_passed_over(tree: Path) -> None:
    expected = load_mvtec(tree)
    for name in ("Thumbs.db", "notes.txt", "._2.png", ".DS_Store"):
        (tree / "bolt/test/good" / name).write_bytes(b"no picture")
    (tree / "license.txt").write_text("free")
    assert load_mvtec(tree) == expected


@pytest.mark.parametrize(
    ("good", "bad"),
    [("ok", "ko"), ("Normal", "abnormal"), ("no-defect", "NG"), ("OK", "scratch"), ("normal_2", "1_bad")],
)
def test_normal_pictures_go_by_any_of_the_known_names(tmp_path: Path, good: str, bad: str) -> None:
    for place in (f"train/{good}", f"test/{good}", f"test/{bad}"):
        draw(tmp_path / "01" / place / "0.bmp")
    draw_mask(tmp_path / "01" / "ground_truth" / bad / "0.png")
    table = load_mvtec(tmp_path)
    assert {(s.split, s.label, s.location) for s in table} == {
        ("train", "no", None), ("test", "no", None), ("test", "yes", "top left"),
    }  # fmt: skip
    assert check_health(table) == [] and all(category_of(s) in {"other", "scratch"} for s in table if s.type)


def test_several_masks_of_one_picture_are_united(tree: Path) -> None:
    """As MVTec LOCO and AutoVI keep them: ground_truth/<kind>/<picture>/000.png, 001.png."""
    folder = tree / "bolt/ground_truth/bent_tip/000"
    draw_mask(folder / "000.png", (0, 0, 2, 2))
    draw_mask(folder / "001.png", (2, 0, 4, 2))
    table = load_mvtec(tree)
    (bent,) = (s for s in table if s.type == "bent tip")
    assert (bent.mask, bent.location) == (str(folder), "top left") and check_health(table) == []
    assert read_mask(folder).sum() == 8 and without_place(table) == []
    draw_mask(folder / "002.png", size=(9, 9))
    assert problem_kinds(load_mvtec(tree, strict=False)) == {"unreadable": 1}
    (folder / "002.png").unlink()
    (folder / "out.png").symlink_to(draw(tree.parent / "elsewhere.png"))
    table = load_mvtec(tree, strict=False)
    assert {s.location for s in table if s.type == "bent tip"} == {None} and "outside" in problem_kinds(table)


def test_mvtec_ad_2_keeps_its_public_test_apart(tmp_path: Path) -> None:
    for place in ("train/good", "validation/good", "test_public/good", "test_public/bad"):
        draw(tmp_path / "can" / place / "000_regular.png")
    draw_mask(tmp_path / "can/test_public/ground_truth/bad/000_regular_mask.png", (25, 15, 30, 20))
    table = load_mvtec(tmp_path)
    assert [(s.split, s.label, s.location) for s in table] == [
        ("train", "no", None), ("test", "yes", "bottom right"), ("test", "no", None),
    ]  # fmt: skip
    assert [(p.kind, Path(p.image).parent.name) for p in table.passed_over] == [("passed over", "validation")]


def test_masks_beside_their_pictures_and_a_kind_called_label(tmp_path: Path) -> None:
    for name in ("good/0", "dent/0", "label/0"):
        draw(tmp_path / "part/test" / f"{name}.png")
    draw_mask(tmp_path / "part/test/dent/0_mask.png")
    draw_mask(tmp_path / "part/ground_truth/label/0_mask.png")
    facts = [(s.type, s.location) for s in load_mvtec(tmp_path)]
    assert facts == [("dent", "top left"), (None, None), ("label", "top left")]


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(kind=names, file=names)
def test_names_of_any_script(kind: str, file: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a folder and a picture are called: it is a row with that name, hidden, or listed."""
    root = tmp_path_factory.mktemp("names")
    draw(root / "part/test/good/0.png")
    path = root / "part/test" / f"{kind}" / f"{file}.png"
    if kind in (".", "..") or path.parent.exists():
        return
    draw(path)
    table = load_mvtec(root, strict=False)
    hidden = kind.startswith(".") or file.startswith(".")
    listed = any(problem.image == str(path.parent) for problem in table.passed_over)
    assert hidden or listed or str(path) in {sample.image for sample in table}


def test_links_that_run_in_a_circle_are_passed_over_and_listed(tree: Path) -> None:
    expected = load_mvtec(tree)
    assert expected.passed_over == []
    (tree / "loop").symlink_to(tree)
    (tree / "bolt/test/loop").symlink_to(tree / "bolt")
    (tree / "bolt/test/good/self.png").symlink_to(tree / "bolt/test/good/self.png")
    (tree / "bolt/test/good/gone.png").symlink_to(tree / "bolt/test/good/99.png")
    table = load_mvtec(tree)
    assert table == expected and [problem.kind for problem in table.passed_over] == ["broken link"] * 4
    (tree.parent / "shortcut").symlink_to(tree)
    assert len(load_mvtec(tree.parent / "shortcut")) == len(expected)  # the root itself may be a link


@pytest.mark.parametrize(
    "place", ["nut", "bolt/test/extra", "bolt/test/good/7.png", "bolt/ground_truth/bent_tip", "nut/test"]
)
def test_a_link_out_of_the_folder_is_refused(tree: Path, tmp_path: Path, place: str) -> None:
    outside = draw(tmp_path / "elsewhere/test/good/7.png")
    (tree / place).parent.mkdir(exist_ok=True)
    (tree / place).symlink_to(outside if place.endswith(".png") else tmp_path / "elsewhere")
    one_sentence(lambda: load_mvtec(tree), "leads out")
    table = load_mvtec(tree, strict=False)
    assert len(table) == 6 and not [s for s in table if place in s.image]  # as if the link were not there
    assert [(p.kind, p.image) for p in check_health(table)][0] == ("outside", str(tree / place))


@pytest.mark.parametrize("category", ["", "bolt"])
def test_a_hub_cache_s_links_to_its_own_files_are_followed(tree: Path, tmp_path: Path, category: str) -> None:
    cache = tmp_path / "datasets--owner--plant"
    snapshot, blobs = cache / "snapshots/abc", cache / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(tree.rglob("*.*"))):
        link = snapshot / path.relative_to(tree)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    table = load_mvtec(snapshot / category)
    assert len(table) == 6 and sum(s.location is not None for s in table) == 2
    assert problem_kinds(table) == {"defect without mask": 1}
    for place in (cache / "secret.png", tmp_path / "other/blobs/secret.png", blobs / "deeper/secret.png"):
        (snapshot / "bolt/test/good/out.png").symlink_to(draw(place))
        one_sentence(lambda: load_mvtec(snapshot / category), "leads out")
        (snapshot / "bolt/test/good/out.png").unlink()


def test_folders_that_cannot_be_read(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "other/Data/Images/Normal/0.png")
    one_sentence(lambda: load_mvtec(tmp_path / "nowhere"), "nowhere", "check the path")
    one_sentence(lambda: load_mvtec(tmp_path / "empty"), tmp_path, "empty")
    one_sentence(lambda: load_mvtec(tmp_path / "other"), tmp_path, "test/<kind>")
    one_sentence(lambda: load_mvtec(tree.parent), "name that folder", tree)
    one_sentence(lambda: load_mvtec(tree / "bolt/test/good/2.png"), "2.png")


@pytest.mark.parametrize("place", ["train/bent_tip", "train/gut"])
def test_other_pictures_in_train_are_not_skipped_in_silence(tree: Path, place: str) -> None:
    draw(tree / "bolt" / place / "0.png")
    one_sentence(lambda: load_mvtec(tree), f"bolt/{place}", "call it good")
    assert problem_kinds(load_mvtec(tree, strict=False))["misplaced"] == 1


def test_pictures_and_masks_that_cannot_be_read(tree: Path) -> None:
    good, mask = tree / "bolt/test/good/2.png", tree / "bolt/ground_truth/missing_parts/000_mask.png"
    whole = draw(good, size=(200, 100)).read_bytes()
    good.write_bytes(whole[:-5000])  # its header is sound, so only the health check sees it
    assert [p.image for p in check_health(load_mvtec(tree)) if p.kind == "unreadable"] == [str(good)]
    good.write_text("hello")
    one_sentence(lambda: load_mvtec(tree), good)
    good.write_bytes(whole)
    mask.write_bytes(mask.read_bytes()[:60])
    one_sentence(lambda: load_mvtec(tree), mask)
    draw_mask(mask, size=(31, 20))
    one_sentence(lambda: load_mvtec(tree), mask, "31 x 20", "30 x 20")
    assert problem_kinds(load_mvtec(tree, strict=False))["mask size"] == 1


def test_a_locked_picture_is_listed_and_not_compared(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is locked, so the lock is simulated, for Path.open and for open."""
    locked = tree / "bolt/test/good/2.png"
    free = io.open

    def refuse_one(path: str | Path, *args: object, **settings: object) -> object:
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return free(path, *args, **settings)  # type: ignore[call-overload]

    samples = load_mvtec(tree, strict=False)
    monkeypatch.setattr("io.open", refuse_one)
    monkeypatch.setattr("builtins.open", refuse_one)
    (problem,) = (p for p in check_health(samples) if p.kind == "unreadable")
    assert problem.image == str(locked) and "permissions" in problem.message


@pytest.mark.parametrize(("kept", "part"), [("yes", "no good"), ("no", "no defective")])
def test_a_label_that_is_missing_is_named(tree: Path, kept: str, part: str) -> None:
    table = load_mvtec(tree)
    assert missing_label(table, tree) is None
    sentence = missing_label([sample for sample in table if sample.label == kept], tree)
    assert sentence and str(tree) in sentence and part in sentence
    one_sentence(lambda: missing_label([], tree), tree, "no pictures")


def test_pictures_that_lie_deeper_than_the_layout_are_listed(tree: Path) -> None:
    """Masks of good pictures are nobody's and no fault."""
    draw_mask(tree / "bolt/ground_truth/good/10_mask.png", None)
    for number in range(3):
        draw(tree / "bolt/test/good/older/even older" / f"{number}.png")
    (problem,) = load_mvtec(tree).passed_over
    assert problem.kind == "passed over" and "holds 3 pictures" in problem.message
    assert problem.image.endswith("even older")


@pytest.mark.parametrize("ground", [0, 1])
def test_a_mask_that_marks_most_says_no_place(tree: Path, ground: int) -> None:
    """Inverted, or with a surrounding that is not black."""
    mask = draw_mask(tree / "bolt/ground_truth/missing_parts/000_mask.png")
    pixels = np.asarray(Image.open(mask))
    Image.fromarray(pixels + np.uint8(1) if ground else 255 - pixels).save(mask)
    table = load_mvtec(tree)
    assert problem_kinds(table) == {"mask marks most": 1, "defect without mask": 1}
    assert [s.location for s in table if s.mask == str(mask)] == [None] and len(without_place(table)) == 2


@pytest.mark.parametrize(("size", "kind"), [((16, 16), "turned picture"), ((16, 10), "mask size")])
def test_a_mask_of_the_pixels_of_a_turned_picture_is_listed(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", size, "grey").save(tmp_path / "0.jpg", exif=exif)
    mask = draw_mask(tmp_path / "0.png", size=size)
    sample = Sample(str(tmp_path / "0.jpg"), "yes", str(mask), None, "top left", "a", "s", "test", "x")
    assert kind in {problem.kind for problem in sample_problems(sample)}


def test_health_counts_every_kind_in_the_order_of_kinds(tree: Path) -> None:
    sound = load_mvtec(tree)
    assert problem_kinds(sound) == {"defect without mask": 1}
    good = tree / "bolt/test/good"
    draw_mask(tree / "bolt/ground_truth/missing_parts/000_mask.png", None)
    draw_mask(tree / "bolt/ground_truth/missing_parts/001.png", (0, 0, 3, 3), (9, 9))
    (good / "3.png").write_bytes((good / "2.png").read_bytes())
    (good / "4.png").write_bytes((tree / "bolt/train/good/000.png").read_bytes())
    for name in ("5.png", "6.png"):
        (good / name).write_text(name)
    (tree / "loop").symlink_to(tree)
    table = health_table(check_health(load_mvtec(tree, strict=False)))
    assert dict(zip(table["kind"], table["count"], strict=True)) == {
        "broken link": 1,
        "unreadable": 2,
        "mask size": 1,
        "empty mask": 1,
        "defect without mask": 1,
        "duplicate": 1,
        "duplicate across splits": 1,
    }
    assert table["kind"].tolist() == [kind for kind in KINDS if kind in set(table["kind"])]
    assert table["meaning"].tolist() == [KINDS[kind] for kind in table["kind"]]
    assert table["example"][0] == str(tree / "loop")
    assert health_table([]).empty and list(health_table([])) == list(table)
    os.remove(sound[0].image)
    assert problem_kinds(sound)["unreadable"] == 1


@pytest.mark.parametrize(
    ("path", "label", "source", "kind"),
    [
        ("DS/tyre/test/bad/good.png", "yes", "mvtec", "good in path"),
        ("DS/Goodyear/test/bad/0.png", "yes", "mvtec", "good in path"),
        ("goodman/DS/tyre/test/bad/0.png", "yes", "mvtec", None),  # above the data set: the user's affair
        ("goodyear/0.png", "yes", "own", "good in path"),
        ("DS/goodyear/test/bad/0.png", "no", "own", "good by accident"),
        ("DS/goodyear/test/good/0.png", "no", "mvtec", None),
        ("DS/tyre/test/good/0.png", "no", "index", None),
        ("DS/tyre/test/ok/0.png", "no", "index", "no good in path"),
        ("DS/tyre/test/ok/0.png", "no", "good-and-bad", None),
    ],
)
def test_good_in_a_path_by_accident(tmp_path: Path, path: str, label: str, source: str, kind: str | None) -> None:
    root = tmp_path.parent / "paths" / tmp_path.name.rsplit("_", 1)[-1]  # without the word in this test's name
    image = draw(root / path)
    sample = Sample(str(image), label, None, None, None, "tyre", "DS", "test", source)  # type: ignore[arg-type]
    kinds = {problem.kind for problem in check_health([sample])} - {"defect without mask"}
    assert kinds == ({kind} if kind else set())


def test_leakage_finds_shared_pictures_under_other_names(tree: Path, tmp_path: Path) -> None:
    train = load_mvtec(tree)
    copy = draw(tmp_path / "second/cap/test/good/0.png").with_name("1.png")
    copy.write_bytes(Path(train[3].image).read_bytes())
    test = load_mvtec(tmp_path / "second")
    assert leakage(train, test) == {content_hash(copy): ([train[3].image], [str(copy)])}
    assert leakage(train, test[:1]) == {}
    assert problem_kinds([train[3], *test])["duplicate across data sets"] == 1


def test_counts_and_table(tree: Path) -> None:
    samples = load_mvtec(tree)
    table = counts(samples)
    assert list(table) == ["benchmark", "category", "split", "good", "defective", "with mask"]
    assert table.to_numpy().tolist() == [["plant", "bolt", "train", 1, 0, 0], ["plant", "bolt", "test", 2, 3, 2]]
    frame = samples_table(samples)
    assert list(frame.columns) == [field.name for field in dataclasses.fields(Sample)] and len(frame) == 6
    assert samples_table([]).empty and counts([]).empty
