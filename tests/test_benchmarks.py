"""Readers and checks of iadr1_lib.benchmarks, on small trees and on real samples."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from iadr1_lib import data as b
from iadr1_lib.data import category_of
from iadr1_lib.data.masks import mask_location
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample


def draw(path: Path, size: tuple[int, int] = (30, 20), mode: str = "RGB", value: int | None = None) -> Path:
    """Write a picture; without a value its content comes from its path, so that no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if value is not None:
        pixels[:] = value
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def draw_mask(path: Path, box: tuple[int, int, int, int] | None, size: tuple[int, int] = (30, 20)) -> Path:
    mask = Image.new("L", size)
    if box:
        mask.paste(255, box)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One category: 1 training, 2 good, 2 broken pictures with masks and 1 bent one without."""
    part = tmp_path / "plant" / "bolt"
    draw(part / "train/good/000.png")
    draw(part / "test/good/10.png")
    draw(part / "test/good/2.png")
    draw(part / "test/missing_parts/000.png")
    draw(part / "test/missing_parts/001.jpg")
    draw(part / "test/bent_tip/000.png")
    draw_mask(part / "ground_truth/missing_parts/000_mask.png", (0, 0, 4, 4))
    draw_mask(part / "ground_truth/missing_parts/001.png", (25, 15, 30, 20))
    return tmp_path / "plant"


def problem_kinds(samples: list[Sample]) -> Counter[str]:
    return Counter(problem.kind for problem in b.check_health(samples))


# --- reading -------------------------------------------------------------------------------------


def test_load_mvtec_reads_labels_types_places_and_splits(tree: Path) -> None:
    samples = b.load_mvtec(tree)
    facts = [(Path(s.image).name, s.split, s.label, s.type, s.location) for s in samples]
    assert facts == [
        ("000.png", "train", "no", None, None),
        ("000.png", "test", "yes", "bent tip", None),
        ("2.png", "test", "no", None, None),
        ("10.png", "test", "no", None, None),
        ("000.png", "test", "yes", "missing parts", "top left"),
        ("001.jpg", "test", "yes", "missing parts", "bottom right"),
    ]
    assert {(s.benchmark, s.category, s.source) for s in samples} == {("plant", "bolt", "mvtec")}


def test_one_category_gives_the_same_rows_as_its_data_set(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tree / "nut/test/good/0.png")
    of_bolt = [sample for sample in b.load_mvtec(tree) if sample.category == "bolt"]
    assert b.load_mvtec(tree / "bolt") == of_bolt
    monkeypatch.chdir(tree / "bolt")
    here = b.load_mvtec(".")
    assert [(s.category, s.benchmark, s.location) for s in here] == [
        (s.category, s.benchmark, s.location) for s in of_bolt
    ]


def test_benchmark_name_can_be_given(tree: Path) -> None:
    assert {sample.benchmark for sample in b.load_mvtec(tree, "mine")} == {"mine"}


def test_other_files_and_hidden_files_are_passed_over(tree: Path) -> None:
    expected = b.load_mvtec(tree)
    for name in ("Thumbs.db", "notes.txt", "._2.png", ".DS_Store"):
        (tree / "bolt/test/good" / name).write_bytes(b"no picture")
    (tree / "license.txt").write_text("free")
    assert b.load_mvtec(tree) == expected


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        b.load_mvtec(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("good", "bad"),
    [("ok", "ko"), ("Normal", "abnormal"), ("no-defect", "NG"), ("OK", "scratch"), ("normal_2", "1_bad")],
)
def test_normal_pictures_go_by_any_of_the_known_names(tmp_path: Path, good: str, bad: str) -> None:
    for place in (f"train/{good}", f"test/{good}", f"test/{bad}"):
        draw(tmp_path / "01" / place / "0.bmp")
    draw_mask(tmp_path / "01" / "ground_truth" / bad / "0.png", (0, 0, 4, 4))
    table = b.load_mvtec(tmp_path)
    assert {(s.split, s.label, s.location) for s in table} == {
        ("train", "no", None), ("test", "no", None), ("test", "yes", "top left"),
    }  # fmt: skip
    assert b.check_health(table) == [] and all(category_of(s) in {"other", "scratch"} for s in table if s.type)


def test_an_unknown_folder_among_the_training_pictures_is_told(tmp_path: Path) -> None:
    for place in ("train/gut", "test/good", "test/bent"):
        draw(tmp_path / "part" / place / "0.png")
    with pytest.raises(UserError, match="train/gut .* call it good"):
        b.load_mvtec(tmp_path)


def test_several_masks_of_one_picture_are_united(tree: Path) -> None:
    """As MVTec LOCO and AutoVI keep them: ground_truth/<kind>/<picture>/000.png, 001.png."""
    folder = tree / "bolt/ground_truth/bent_tip/000"
    draw_mask(folder / "000.png", (0, 0, 2, 2))
    draw_mask(folder / "001.png", (2, 0, 4, 2))
    table = b.load_mvtec(tree)
    (bent,) = (s for s in table if s.type == "bent tip")
    assert (bent.mask, bent.location) == (str(folder), "top left") and b.check_health(table) == []
    assert b.read_mask(folder).sum() == 8 and b.without_place(table) == []
    draw_mask(folder / "002.png", (0, 0, 4, 4), (9, 9))
    assert problem_kinds(b.load_mvtec(tree, strict=False)) == {"unreadable": 1}
    (folder / "002.png").unlink()
    (folder / "out.png").symlink_to(draw(tree.parent / "elsewhere.png"))
    found = b.load_mvtec(tree, strict=False)
    assert {s.location for s in found if s.type == "bent tip"} == {None} and "outside" in problem_kinds(found)


def test_mvtec_ad_2_keeps_its_public_test_apart(tmp_path: Path) -> None:
    for place in ("train/good", "validation/good", "test_public/good", "test_public/bad"):
        draw(tmp_path / "can" / place / "000_regular.png")
    draw_mask(tmp_path / "can/test_public/ground_truth/bad/000_regular_mask.png", (25, 15, 30, 20))
    table = b.load_mvtec(tmp_path)
    assert [(s.split, s.label, s.location) for s in table] == [
        ("train", "no", None), ("test", "yes", "bottom right"), ("test", "no", None),
    ]  # fmt: skip
    assert [(p.kind, Path(p.image).parent.name) for p in table.passed_over] == [("passed over", "validation")]


def test_masks_beside_their_pictures_are_no_pictures(tmp_path: Path) -> None:
    for name in ("good/0", "good/1", "dent/0"):
        draw(tmp_path / "part/test" / f"{name}.png")
    draw_mask(tmp_path / "part/test/dent/0_mask.png", (0, 0, 4, 4))
    assert [(s.label, s.location) for s in b.load_mvtec(tmp_path)] == [("yes", "top left"), ("no", None), ("no", None)]


def test_a_kind_of_defect_may_be_called_like_a_folder_of_masks(tmp_path: Path) -> None:
    draw(tmp_path / "bottle/test/good/0.png")
    draw(tmp_path / "bottle/test/label/0.png")
    draw_mask(tmp_path / "bottle/ground_truth/label/0_mask.png", (0, 0, 4, 4))
    assert [(s.type, s.location) for s in b.load_mvtec(tmp_path)] == [(None, None), ("label", "top left")]


# --- the folder's boundary -----------------------------------------------------------------------


def test_links_that_run_in_a_circle_are_passed_over_and_told(tree: Path) -> None:
    expected = b.load_mvtec(tree)
    assert expected.passed_over == []
    (tree / "loop").symlink_to(tree)
    (tree / "bolt/test/loop").symlink_to(tree / "bolt")
    (tree / "bolt/test/good/self.png").symlink_to(tree / "bolt/test/good/self.png")
    (tree / "bolt/test/good/gone.png").symlink_to(tree / "bolt/test/good/99.png")
    found = b.load_mvtec(tree)
    assert found == expected and [problem.kind for problem in found.passed_over] == ["broken link"] * 4


@pytest.mark.parametrize(
    "place", ["nut", "bolt/test/extra", "bolt/test/good/7.png", "bolt/ground_truth/bent_tip", "nut/test"]
)
def test_a_link_out_of_the_folder_is_refused(tree: Path, tmp_path: Path, place: str) -> None:
    outside = draw(tmp_path / "elsewhere/test/good/7.png")
    (tree / place).parent.mkdir(exist_ok=True)
    (tree / place).symlink_to(outside if place.endswith(".png") else tmp_path / "elsewhere")
    expected = [sample for sample in b.load_mvtec(tree, strict=False) if place not in sample.image]
    with pytest.raises(UserError, match="leads out"):
        b.load_mvtec(tree)
    found = b.load_mvtec(tree, strict=False)
    assert found == expected and len(found) == 6  # as if the link were not there
    assert [(p.kind, p.image) for p in b.check_health(found)][0] == ("outside", str(tree / place))


@pytest.mark.parametrize("named", ["", "bolt"])
def test_a_hub_cache_s_links_to_its_own_files_are_followed(tree: Path, tmp_path: Path, named: str) -> None:
    cache = tmp_path / "datasets--owner--plant"
    snapshot, blobs = cache / "snapshots/abc", cache / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(tree.rglob("*.*"))):
        link = snapshot / path.relative_to(tree)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    table = b.load_mvtec(snapshot / named)
    assert len(table) == 6 and sum(s.location is not None for s in table) == 2
    assert problem_kinds(table) == {"defect without mask": 1}
    for place in (cache / "secret.png", tmp_path / "other/blobs/secret.png", blobs / "deeper/secret.png"):
        (snapshot / "bolt/test/good/out.png").symlink_to(draw(place))
        with pytest.raises(UserError, match="leads out"):
            b.load_mvtec(snapshot / named)
        (snapshot / "bolt/test/good/out.png").unlink()


def test_the_root_itself_may_be_a_link(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "shortcut").symlink_to(tree)
    assert len(b.load_mvtec(tmp_path / "shortcut")) == len(b.load_mvtec(tree))


# --- bad input -----------------------------------------------------------------------------------


def one_sentence(error: pytest.ExceptionInfo[UserError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text and all(str(part) in text for part in parts), text


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        b.load_mvtec(tmp_path)
    one_sentence(error, tmp_path, "empty")


def test_another_layout(tmp_path: Path) -> None:
    draw(tmp_path / "Data/Images/Normal/0.png")
    with pytest.raises(UserError) as error:
        b.load_mvtec(tmp_path)
    one_sentence(error, tmp_path, "test/good")


def test_a_folder_of_data_sets_names_one(tree: Path) -> None:
    with pytest.raises(UserError) as error:
        b.load_mvtec(tree.parent)
    one_sentence(error, tree)


def test_a_file_instead_of_a_folder(tree: Path) -> None:
    with pytest.raises(UserError):
        b.load_mvtec(tree / "bolt/test/good/2.png")


def test_defects_in_train_are_not_skipped_in_silence(tree: Path) -> None:
    draw(tree / "bolt/train/bent_tip/0.png")
    with pytest.raises(UserError) as error:
        b.load_mvtec(tree)
    one_sentence(error, "bolt/train/bent_tip")
    assert problem_kinds(b.load_mvtec(tree, strict=False))["misplaced"] == 1


def test_mask_of_another_size(tree: Path) -> None:
    mask = draw_mask(tree / "bolt/ground_truth/missing_parts/000_mask.png", (0, 0, 4, 4), (31, 20))
    with pytest.raises(UserError) as error:
        b.load_mvtec(tree)
    one_sentence(error, mask, "31 x 20", "30 x 20")
    assert problem_kinds(b.load_mvtec(tree, strict=False))["mask size"] == 1


def test_not_a_picture(tree: Path) -> None:
    (tree / "bolt/test/good/2.png").write_text("hello")
    with pytest.raises(UserError) as error:
        b.load_mvtec(tree)
    one_sentence(error, "test/good/2.png")
    assert problem_kinds(b.load_mvtec(tree, strict=False))["unreadable"] == 1


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_truncated_picture(tmp_path: Path, suffix: str, keep: float) -> None:
    path = draw(tmp_path / f"cut{suffix}", size=(200, 100))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(UserError) as error:
        b.open_image(path)
    one_sentence(error, path)


def test_truncated_picture_is_found_by_the_health_check(tree: Path) -> None:
    path = draw(tree / "bolt/test/good/2.png", size=(200, 100))
    path.write_bytes(path.read_bytes()[:-5000])
    samples = b.load_mvtec(tree)
    assert [p.image for p in b.check_health(samples) if p.kind == "unreadable"] == [str(path)]


def test_truncated_mask(tree: Path) -> None:
    path = tree / "bolt/ground_truth/missing_parts/000_mask.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as error:
        b.load_mvtec(tree)
    one_sentence(error, path)


@pytest.mark.parametrize(("kept", "named"), [("yes", "no good"), ("no", "no defective")])
def test_a_label_that_is_missing_is_named(tree: Path, kept: str, named: str) -> None:
    said = b.missing_label([sample for sample in b.load_mvtec(tree) if sample.label == kept], tree)
    assert said and str(tree) in said and named in said


def test_pictures_are_required(tree: Path) -> None:
    with pytest.raises(UserError) as error:
        b.missing_label([], tree)
    one_sentence(error, tree, "no pictures")
    assert b.missing_label(b.load_mvtec(tree), tree) is None


def test_pictures_that_lie_deeper_than_the_layout_are_told(tree: Path) -> None:
    """Masks of good pictures are nobody's and no fault."""
    draw_mask(tree / "bolt/ground_truth/good/10_mask.png", None)
    for number in range(3):
        draw(tree / "bolt/test/good/older/even older" / f"{number}.png")
    (told,) = b.load_mvtec(tree).passed_over
    assert told.kind == "passed over" and "holds 3 pictures" in told.message and told.image.endswith("even older")


# --- hostile files -------------------------------------------------------------------------------


def huge_png(path: Path, width: int, height: int) -> Path:
    """A one-bit picture of any size in a few bytes: the header is true, the pixels are missing."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in [*parts, (b"IEND", b"")]]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (9_460, 9_460), (2**31 - 1, 1)])
def test_a_picture_that_would_eat_the_memory_is_not_decoded(tree: Path, size: tuple[int, int]) -> None:
    """The sentence says so: whoever decoded it would find it cut off instead."""
    path = huge_png(tree / "bolt/test/good/2.png", *size)
    mask = huge_png(tree / "bolt/ground_truth/missing_parts/001.png", *size)
    for read in (b.open_image, b.read_mask, b.image_size):
        with pytest.raises(UserError, match="too large"):
            read(path)
    problems = [p for p in b.check_health(b.load_mvtec(tree, strict=False)) if p.kind == "unreadable"]
    assert [name in p.message for p, name in zip(problems, (str(path), str(mask)), strict=True)] == [True, True]
    assert all("too large" in p.message for p in problems)


def test_a_real_picture_of_400_million_pixels(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png", compress_level=1)
    with pytest.raises(UserError, match="too large"):
        b.open_image(tmp_path / "a.png")


def test_a_locked_picture_is_told_and_not_compared(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is locked, so the lock is played, for Path.open and for open."""
    locked = tree / "bolt/test/good/2.png"
    free = io.open

    def refuse_one(path: str | Path, *args: object, **settings: object) -> object:
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return free(path, *args, **settings)  # type: ignore[call-overload]

    samples = b.load_mvtec(tree, strict=False)
    monkeypatch.setattr("io.open", refuse_one)
    monkeypatch.setattr("builtins.open", refuse_one)
    assert [(p.image, "permissions" in p.message) for p in b.check_health(samples) if p.kind == "unreadable"] == [
        (str(locked), True)
    ]


def encoded(suffix: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), exif=exif)
    return file.getvalue()


PICTURES = {suffix: encoded(suffix) for suffix in ("png", "jpg", "bmp", "tif", "webp")}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about what it met
@given(
    suffix=st.sampled_from(sorted(PICTURES)),
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=8),
    kept=st.integers(0, 600),
)
def test_damage_of_any_kind_ends_in_a_sentence(
    suffix: str, changes: list[tuple[int, int]], kept: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(PICTURES[suffix])
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    path.write_bytes(data if kept > 500 else data[:kept])
    for read in (b.open_image, b.read_mask, b.image_size):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(kind=names, file=names)
def test_names_of_any_script(kind: str, file: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a folder and a picture are called: it is a row with that name, hidden, or told."""
    root = tmp_path_factory.mktemp("names")
    draw(root / "part/test/good/0.png")
    path = root / "part/test" / f"{kind}" / f"{file}.png"
    if kind in (".", "..") or path.parent.exists():
        return
    draw(path)
    table = b.load_mvtec(root, strict=False)
    hidden = kind.startswith(".") or file.startswith(".")
    told = any(problem.image == str(path.parent) for problem in table.passed_over)
    assert hidden or told or str(path) in {sample.image for sample in table}
    assert b.read_samples(b.write_samples(table, root / "samples.jsonl")) == table


# --- pictures of any kind ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_open_image_takes_every_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in {"CMYK", "YCbCr", "I", "F"} else "a.png")
    numbers = {"I;16": (np.uint16, 200 * 257), "I": (np.int32, 200 * 257), "F": (np.float32, 200)}
    brightness = 255 if mode == "1" else 200
    if mode in numbers:
        dtype, value = numbers[mode]
        Image.fromarray(np.full((2, 3), value, dtype)).save(path)
    else:
        Image.new("L", (3, 2), brightness).convert(mode).save(path)
    image = b.open_image(path)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert np.abs(np.asarray(image, dtype=int) - brightness).max() <= 2


@pytest.mark.parametrize(("top", "seen"), [(255, 255), (1023, 255), (4095, 255), (65535, 255), (2048, 128)])
def test_grey_values_beyond_eight_bits_are_scaled_from_the_camera_depth(tmp_path: Path, top: int, seen: int) -> None:
    Image.fromarray(np.array([[0, top]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(b.open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, seen]


def test_one_bit_depth_for_all_pictures_of_a_data_set(tmp_path: Path) -> None:
    """Each by its own brightest spot, a glint in a defect would make the picture four times darker than the others."""
    for name, top in (("good/0", 900), ("good/1", 500), ("glint/0", 4000)):
        path = tmp_path / f"part/test/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[400, top]], np.uint16)).save(path)
    plain = draw(tmp_path / "part/test/good/2.png")
    alone = b.open_image(plain)
    table = b.load_mvtec(tmp_path)
    assert {np.asarray(b.open_image(s.image))[0, 0, 0] for s in table if s.image != str(plain)} == {
        round(400 / 4095 * 255)
    }
    assert b.open_image(os.path.relpath(table[0].image)) == b.open_image(table[0].image)
    assert b.open_image(plain) == alone and str(plain) not in b.known_depths()


def test_share_depth_takes_paths_and_passes_over_what_is_no_picture(tmp_path: Path) -> None:
    paths = [tmp_path / "dark.tif", tmp_path / "bright.tif", tmp_path / "gone.tif", tmp_path / "text.tif"]
    paths[3].write_text("no picture")
    for path, top in zip(paths, (0.5, 200), strict=False):
        Image.fromarray(np.array([[0.5, top]], np.float32)).save(path)
    assert b.known_depths().keys().isdisjoint(map(str, paths))
    b.share_depth(paths)
    assert {str(path): b.known_depths().get(str(path)) for path in paths} == {
        str(paths[0]): 255, str(paths[1]): 255, str(paths[2]): None, str(paths[3]): None,
    }  # fmt: skip


def test_the_depth_that_a_tiff_states(tmp_path: Path) -> None:
    """12 bits packed, none of the values near the top."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    packed = bytes([0x0C, 0x80, 0x64])  # 200, 100
    (tmp_path / "a.tif").write_bytes(
        struct.pack("<2sHI", b"II", 42, 12) + packed + b"\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    )
    assert np.asarray(b.open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [12, 6]


def test_float_pictures_from_0_to_1_and_odd_values(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1, 0.5, 1, np.nan]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(b.open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255, 0]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert np.asarray(b.open_image(tmp_path / "a.png")).min() == 255


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation(tmp_path: Path, suffix: str, orientation: int) -> None:
    """The bright half is left in the file; orientation 6 turns left to top, 8 to bottom, 3 to right."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("L", (32, 16))
    image.paste(255, (0, 0, 16, 16))
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif)
    upright = b.open_image(path)
    assert b.image_size(path) == upright.size == ((16, 32) if orientation > 4 else (32, 16))
    pixels = np.asarray(upright)[..., 0]
    corners = {1: pixels[0, 0], 3: pixels[0, -1], 6: pixels[0, 0], 8: pixels[-1, 0]}
    opposite = {1: pixels[0, -1], 3: pixels[0, 0], 6: pixels[-1, 0], 8: pixels[0, 0]}
    assert corners[orientation] > 200 > 50 > opposite[orientation]


def test_exif_rotation_of_sixteen_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "a.tif"):
        Image.fromarray(np.zeros((2, 5), np.uint16)).save(tmp_path / name, exif=exif)
        assert b.open_image(tmp_path / name).size == b.image_size(tmp_path / name) == (2, 5)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (4000, 2)])
def test_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    assert b.open_image(draw(tmp_path / "a.png", size=size)).size == size


def test_missing_picture_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError):
            b.open_image(path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_every_mode_mean_above_zero(tmp_path: Path, mode: str) -> None:
    truth = np.zeros((4, 6), bool)
    truth[1, 2] = True
    if mode in {"L", "I;16"}:  # class numbers, not 255
        image = Image.fromarray(truth.astype(np.uint8 if mode == "L" else np.uint16) * 3)
    elif mode == "P":
        image = Image.fromarray(truth.astype(np.uint8), mode="L").convert("P")
    else:
        image = Image.fromarray(truth.astype(np.uint8) * 255).convert(mode)
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(b.read_mask(tmp_path / "m.png"), truth)


def layers(colour: np.ndarray | int, alpha: np.ndarray | int) -> Image.Image:
    return Image.fromarray(np.stack([np.broadcast_to(np.uint8(c), SPOT.shape) for c in (colour,) * 3 + (alpha,)], -1))


def palette(numbers: np.ndarray, *colours: int) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8))
    image.putpalette([value for grey in colours for value in (grey,) * 3])
    return image


SPOT = np.zeros((48, 48), bool)
SPOT[6:13, 6:13] = True
ON = SPOT * np.uint8(255)
SPOTS = {
    "white paint, clear around": layers(255, ON),
    "black paint, clear around": layers(0, ON),
    "black throughout, alpha all over": layers(ON, 0),
    "opaque": layers(ON, 255),
    "grey, clear around": Image.merge("LA", [Image.new("L", (48, 48), 255), Image.fromarray(ON)]),
    "index 0 is white": palette(~SPOT, 255, 0),
    "index 0 is black": palette(SPOT * 2, 0, 9, 90),
    "a palette of one colour": palette(SPOT, 0, 0),
    "class numbers": Image.fromarray(SPOT * np.uint8(3)),
    "16 bits": Image.fromarray(SPOT * np.uint16(257)),
    "one bit": Image.fromarray(SPOT),
    "colour": Image.merge("RGB", [Image.fromarray(ON), *2 * [Image.new("L", (48, 48))]]),
}


@pytest.mark.parametrize("kind", SPOTS)
def test_the_spot_of_every_kind_of_mask_is_found(tmp_path: Path, kind: str) -> None:
    SPOTS[kind].save(tmp_path / "m.png")
    np.testing.assert_array_equal(b.read_mask(tmp_path / "m.png"), SPOT)
    assert mask_location(tmp_path / "m.png") == "top left"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("quality", [95, 75, 30])
@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
def test_compression_leaves_no_halo_on_a_mask(tmp_path: Path, suffix: str, quality: int, mode: str) -> None:
    how = {"compression": "jpeg"} if suffix == "tif" else {}
    image = Image.fromarray(ON).convert(mode if suffix != "webp" else "RGB")
    image.save(tmp_path / f"m.{suffix}", quality=quality, **how)
    found = b.read_mask(tmp_path / f"m.{suffix}")
    assert (found != SPOT).sum() <= 4  # of 49


def test_class_numbers_survive_where_nothing_is_lost(tmp_path: Path) -> None:
    numbers = np.where(SPOT, np.arange(48, dtype=np.uint8) % 6 + 1, 0).astype(np.uint8)
    Image.fromarray(numbers).save(tmp_path / "m.webp", lossless=True)
    Image.fromarray(numbers).save(tmp_path / "turned.webp", lossless=True, exif=Image.Exif())
    Image.fromarray(numbers).save(tmp_path / "m.tif")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(b.read_mask(path), SPOT)


@pytest.mark.parametrize("ground", [0, 1])
def test_a_mask_that_marks_most_says_no_place(tree: Path, ground: int) -> None:
    """Inverted, or with a surrounding that is not black."""
    mask = draw_mask(tree / "bolt/ground_truth/missing_parts/000_mask.png", (0, 0, 4, 4))
    pixels = np.asarray(Image.open(mask))
    Image.fromarray(pixels + np.uint8(1) if ground else 255 - pixels).save(mask)
    table = b.load_mvtec(tree)
    assert problem_kinds(table) == {"mask marks most": 1, "defect without mask": 1}
    assert [s.location for s in table if s.mask == str(mask)] == [None] and len(b.without_place(table)) == 2


@pytest.mark.parametrize(("size", "kind"), [((16, 16), "turned picture"), ((16, 10), "mask size")])
def test_a_mask_of_the_pixels_of_a_turned_picture_is_told(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", size, "grey").save(tmp_path / "0.jpg", exif=exif)
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, 4, 4))
    mask.save(tmp_path / "0.png")
    sample = Sample(str(tmp_path / "0.jpg"), "yes", str(tmp_path / "0.png"), None, "top left", "a", "s", "test", "x")
    assert kind in {problem.kind for problem in b.sample_problems(sample)}


def test_a_large_defect_has_its_place(tmp_path: Path) -> None:
    """Patches on steel cover up to 63 % of a real picture."""
    assert mask_location(draw_mask(tmp_path / "m.png", (0, 0, 19, 20))) == "left"


# --- checks --------------------------------------------------------------------------------------


def test_a_sound_folder_has_no_problems_but_the_missing_mask(tree: Path) -> None:
    assert problem_kinds(b.load_mvtec(tree)) == {"defect without mask": 1}


def test_health_counts_every_kind(tree: Path) -> None:
    draw_mask(tree / "bolt/ground_truth/missing_parts/000_mask.png", None)
    draw_mask(tree / "bolt/ground_truth/missing_parts/001.png", (0, 0, 3, 3), (9, 9))
    (tree / "bolt/test/good/3.png").write_bytes((tree / "bolt/test/good/2.png").read_bytes())
    (tree / "bolt/test/good/4.png").write_bytes((tree / "bolt/train/good/000.png").read_bytes())
    (tree / "bolt/test/good/5.png").write_text("hello")
    assert problem_kinds(b.load_mvtec(tree, strict=False)) == {
        "empty mask": 1,
        "mask size": 1,
        "defect without mask": 1,
        "duplicate": 1,
        "duplicate across splits": 1,
        "unreadable": 1,
    }


def test_health_of_rows_whose_files_are_gone(tree: Path) -> None:
    samples = b.load_mvtec(tree)
    os.remove(samples[0].image)
    assert problem_kinds(samples)["unreadable"] == 1


def test_health_table_counts_in_the_order_of_kinds(tree: Path) -> None:
    (tree / "bolt/test/good/5.png").write_text("hello")
    (tree / "bolt/test/good/6.png").write_text("hello")
    (tree / "loop").symlink_to(tree)
    problems = b.check_health(b.load_mvtec(tree, strict=False))
    table = b.health_table(problems)
    assert table[["kind", "count"]].to_numpy().tolist() == [
        ["broken link", 1],
        ["unreadable", 2],
        ["defect without mask", 1],
        ["duplicate", 1],
    ]
    assert table["meaning"].tolist() == [b.KINDS[kind] for kind in table["kind"]]
    assert table["count"].sum() == len(problems) and table["example"][0] == str(tree / "loop")
    assert b.health_table([]).empty and list(b.health_table([])) == list(table)


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
    kinds = {problem.kind for problem in b.check_health([sample])} - {"defect without mask"}
    assert kinds == ({kind} if kind else set())


def test_leakage_finds_shared_pictures_under_other_names(tree: Path, tmp_path: Path) -> None:
    train = b.load_mvtec(tree)
    other = tmp_path / "second/cap/test/good"
    draw(other / "0.png")
    copy = other / "1.png"
    copy.write_bytes(Path(train[3].image).read_bytes())
    test = b.load_mvtec(tmp_path / "second")
    assert b.leakage(train, test) == {b.content_hash(copy): ([train[3].image], [str(copy)])}
    assert b.leakage(train, test[:1]) == {}


# --- tables and files ----------------------------------------------------------------------------


def test_counts_and_table(tree: Path) -> None:
    samples = b.load_mvtec(tree)
    table = b.counts(samples).set_index("split")
    assert table.loc["train", ["good", "defective", "with mask"]].tolist() == [1, 0, 0]
    assert table.loc["test", ["good", "defective", "with mask"]].tolist() == [2, 3, 2]
    frame = b.samples_table(samples)
    assert list(frame.columns) == [field.name for field in dataclasses.fields(Sample)] and len(frame) == 6
    assert b.samples_table([]).empty and b.counts([]).empty


texts = st.text(max_size=12)
sample_rows = st.builds(
    Sample,
    image=texts,
    label=st.sampled_from(["yes", "no"]),
    mask=st.none() | texts,
    type=st.none() | texts,
    location=st.none() | texts,
    category=texts,
    benchmark=texts,
    split=st.sampled_from(["train", "test"]),
    source=texts,
)


@given(samples=st.lists(sample_rows, max_size=4))
def test_samples_survive_the_file(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "new" / "samples.jsonl"
    assert b.read_samples(b.write_samples(samples, path)) == samples


def test_the_file_is_plain_json_lines(tree: Path, tmp_path: Path) -> None:
    path = b.write_samples(b.load_mvtec(tree), tmp_path / "samples.jsonl")
    assert len(pd.read_json(path, lines=True)) == 6
    assert json.loads(path.read_text().splitlines()[0])["label"] == "no"


@pytest.mark.parametrize("line", ["{", '{"image": "a"}', "[1]", '{"image": "a", "colour": "red"}'])
def test_a_broken_table_names_the_line(tree: Path, tmp_path: Path, line: str) -> None:
    path = b.write_samples(b.load_mvtec(tree), tmp_path / "samples.jsonl")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError) as error:
        b.read_samples(path)
    one_sentence(error, path, 7)


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="samples.jsonl"):
        b.read_samples(tmp_path / "samples.jsonl")


# --- real samples --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Path:
    folder = Path(os.environ.get("IADR1_SHARED", "../shared")) / "samples"
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder}; set IADR1_SHARED")
    return folder


@pytest.mark.parametrize(
    ("data_set", "category", "train", "good", "types"),
    [
        (
            "MVTec-AD",
            "screw",
            3,
            6,
            {"manipulated front": 4, "scratch head": 5, "scratch neck": 3, "thread side": 3, "thread top": 4},
        ),
        ("MPDD", "metal_plate", 3, 8, {"bad": 12}),
    ],
)
def test_real_samples(real: Path, data_set: str, category: str, train: int, good: int, types: dict[str, int]) -> None:
    samples = b.load_mvtec(real / data_set)
    assert b.load_mvtec(real / data_set / category) == samples
    assert Counter((s.split, s.label) for s in samples) == {
        ("train", "no"): train,
        ("test", "no"): good,
        ("test", "yes"): sum(types.values()),
    }
    defective = [sample for sample in samples if sample.label == "yes"]
    assert Counter(sample.type for sample in defective) == types
    assert all(sample.mask and sample.location for sample in defective)
    assert {(sample.benchmark, sample.category) for sample in samples} == {(data_set, category)}
    assert b.check_health(samples) == []


def test_real_samples_in_other_layouts_are_told_apart(real: Path) -> None:
    for folder in ("VisA", "KolektorSDD", "."):
        with pytest.raises(UserError):
            b.load_mvtec(real / folder)
