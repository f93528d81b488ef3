"""Pictures and masks of any kind, sound, damaged and hostile."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures import draw, draw_mask, one_sentence
from PIL import Image

from iadr1_lib.data import image_size, known_depths, load_mvtec, open_image, read_mask, share_depth
from iadr1_lib.data.masks import mask_location
from iadr1_lib.errors import UserError


def red(path: Path) -> list[int]:
    """The first row of the red channel as `open_image` reads it."""
    return np.asarray(open_image(path))[0, :, 0].tolist()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert np.abs(np.asarray(image, dtype=int) - brightness).max() <= 2


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert red(tmp_path / "a.png") == [255, 255]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation(tmp_path: Path, suffix: str, orientation: int) -> None:
    """The bright half is left in the file; orientation 6 turns left to top, 8 to bottom, 3 to right."""
    image = Image.new("L", (32, 16))
    image.paste(255, (0, 0, 16, 16))
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=turned(orientation))
    upright = open_image(path)
    assert image_size(path) == upright.size == ((16, 32) if orientation > 4 else (32, 16))
    if suffix in {"png", "tif"}:
        Image.fromarray(np.zeros((2, 5), np.uint16)).save(path.with_stem("deep"), exif=turned(orientation))
        deep = path.with_stem("deep")
        assert open_image(deep).size == image_size(deep) == ((2, 5) if orientation > 4 else (5, 2))
    pixels = np.asarray(upright)[..., 0]
    corners = {1: pixels[0, 0], 3: pixels[0, -1], 6: pixels[0, 0], 8: pixels[-1, 0]}
    opposite = {1: pixels[0, -1], 3: pixels[0, 0], 6: pixels[-1, 0], 8: pixels[0, 0]}
    assert corners[orientation] > 200 > 50 > opposite[orientation]


@pytest.mark.parametrize(
    ("values", "kind", "seen"),
    [
        *(([0, 2**bits - 1], np.uint16, [0, 255]) for bits in (8, 10, 12, 16)),
        ([0, 2048], np.uint16, [0, 128]),
        ([-1, 0.5, 1, np.nan], np.float32, [0, 128, 255, 0]),
    ],
)
def test_grey_values_beyond_eight_bits_are_scaled_from_the_camera_depth(
    tmp_path: Path, values: list[float], kind: type[np.generic], seen: list[int]
) -> None:
    Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "a.tif")
    assert red(tmp_path / "a.tif") == seen


def test_one_bit_depth_for_all_pictures_of_a_data_set(tmp_path: Path) -> None:
    """Each by its own brightest spot, a glint in a defect would make the picture four times darker than the others."""
    for name, top in (("good/0", 900), ("good/1", 500), ("glint/0", 4000)):
        path = tmp_path / f"part/test/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[400, top]], np.uint16)).save(path)
    plain = draw(tmp_path / "part/test/good/2.png")
    alone = open_image(plain)
    table = load_mvtec(tmp_path)
    assert {red(Path(s.image))[0] for s in table if s.image != str(plain)} == {round(400 / 4095 * 255)}
    assert open_image(os.path.relpath(table[0].image)) == open_image(table[0].image)
    assert open_image(plain) == alone and str(plain) not in known_depths()


def test_share_depth_takes_paths_and_passes_over_what_is_no_picture(tmp_path: Path) -> None:
    paths = [tmp_path / "dark.tif", tmp_path / "bright.tif", tmp_path / "gone.tif", tmp_path / "text.tif"]
    paths[3].write_text("no picture")
    for path, top in zip(paths, (0.5, 200), strict=False):
        Image.fromarray(np.array([[0.5, top]], np.float32)).save(path)
    assert known_depths().keys().isdisjoint(map(str, paths))
    share_depth(paths)
    assert [known_depths().get(str(path)) for path in paths] == [255, 255, None, None]


def test_the_depth_that_a_tiff_states(tmp_path: Path) -> None:
    """12 bits packed, none of the values near the top."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    packed = bytes([0x0C, 0x80, 0x64])  # 200, 100
    (tmp_path / "a.tif").write_bytes(
        struct.pack("<2sHI", b"II", 42, 12) + packed + b"\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    )
    assert red(tmp_path / "a.tif") == [12, 6]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_truncated_picture(tmp_path: Path, suffix: str, keep: float) -> None:
    path = draw(tmp_path / f"cut{suffix}", size=(200, 100))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    for faulty in (path, tmp_path / "none.png", tmp_path):
        one_sentence(lambda faulty=faulty: open_image(faulty), faulty)


def huge_png(path: Path, width: int, height: int) -> Path:
    """A one-bit picture of any size in a few bytes: the header is true, the pixels are missing."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in [*parts, (b"IEND", b"")]]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (9_460, 9_460), (2**31 - 1, 1)])
def test_a_picture_that_would_eat_the_memory_is_not_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    """The sentence says so: whoever decoded it would find it cut off instead."""
    path = huge_png(tmp_path / "2.png", *size)
    for read in (open_image, read_mask, image_size):
        one_sentence(lambda read=read: read(path), path, "too large")


def encoded(suffix: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), exif=turned(6))
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
    for read in (open_image, read_mask, image_size):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)


SPOT = np.zeros((48, 48), bool)
SPOT[6:13, 6:13] = True
ON = SPOT * np.uint8(255)


def layers(colour: NDArray[np.uint8] | int, alpha: NDArray[np.uint8] | int) -> Image.Image:
    return Image.fromarray(np.stack([np.broadcast_to(np.uint8(c), SPOT.shape) for c in (colour,) * 3 + (alpha,)], -1))


def palette(numbers: NDArray[np.generic], *colours: int) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8))
    image.putpalette([value for grey in colours for value in (grey,) * 3])
    return image


SPOTS = {
    "white paint, clear around": layers(255, ON),
    "black paint, clear around": layers(0, ON),
    "black throughout, alpha all over": layers(ON, 0),
    "opaque": layers(ON, 255),
    "grey, clear around": Image.merge("LA", [Image.new("L", (48, 48), 255), Image.fromarray(ON)]),
    "grey and alpha": Image.fromarray(ON).convert("LA"),
    "index 0 is white": palette(~SPOT, 255, 0),
    "index 0 is black": palette(SPOT * 2, 0, 9, 90),
    "a palette of one colour": palette(SPOT, 0, 0),
    "a palette of all greys": Image.fromarray(SPOT.astype(np.uint8), mode="L").convert("P"),
    "class numbers": Image.fromarray(SPOT * np.uint8(3)),
    "16 bits": Image.fromarray(SPOT * np.uint16(3)),
    "one bit": Image.fromarray(SPOT),
    "colour": Image.merge("RGB", [Image.fromarray(ON), *2 * [Image.new("L", (48, 48))]]),
}


@pytest.mark.parametrize("kind", SPOTS)
def test_the_spot_of_every_kind_of_mask_is_found(tmp_path: Path, kind: str) -> None:
    SPOTS[kind].save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), SPOT)
    assert mask_location(tmp_path / "m.png") == "top left"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("quality", [95, 75, 30])
@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
def test_compression_leaves_no_halo_on_a_mask(tmp_path: Path, suffix: str, quality: int, mode: str) -> None:
    settings = {"compression": "jpeg"} if suffix == "tif" else {}
    image = Image.fromarray(ON).convert(mode if suffix != "webp" else "RGB")
    image.save(tmp_path / f"m.{suffix}", quality=quality, **settings)
    assert (read_mask(tmp_path / f"m.{suffix}") != SPOT).sum() <= 4  # of 49


def test_class_numbers_survive_where_nothing_is_lost(tmp_path: Path) -> None:
    numbers = np.where(SPOT, np.arange(48, dtype=np.uint8) % 6 + 1, 0).astype(np.uint8)
    Image.fromarray(numbers).save(tmp_path / "m.webp", lossless=True)
    Image.fromarray(numbers).save(tmp_path / "turned.webp", lossless=True, exif=Image.Exif())
    Image.fromarray(numbers).save(tmp_path / "m.tif")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_mask(path), SPOT)


def test_a_large_defect_has_its_place(tmp_path: Path) -> None:
    """Patches on steel cover up to 63 % of a real picture."""
    assert mask_location(draw_mask(tmp_path / "m.png", (0, 0, 19, 20))) == "left"
