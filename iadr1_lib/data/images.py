"""One loader for pictures of any kind: 8-bit RGB, upright, on one bit depth per data set."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from iadr1_lib.errors import UserError

MAX_PIXELS = 89_478_485  # where Pillow begins to warn; a picture of this size takes 270 MB as RGB
_ORIENTATION = 0x0112  # the EXIF tag
T = TypeVar("T")


def open_image(path: str | Path) -> Image.Image:
    """Read a picture of any size and mode as 8-bit RGB, upright.

    EXIF rotation is applied, transparency is laid on white, grey values of more than 8 bits are scaled from
    the smallest camera depth (10, 12, 14 or 16 bits) that holds the data set (see :func:`share_depth`) or else
    the picture, and of several frames the first is taken.

    Raises:
        UserError: the file is missing, is no picture, is cut off, or has more than MAX_PIXELS.
    """
    return decode(path, lambda image: to_rgb(image, depth_of(path)))


def to_rgb(image: Image.Image, depth: float | None = None) -> Image.Image:
    """An opened picture of any mode as :func:`open_image` gives it; ``depth``: the value that is white, if known."""
    image.load()  # before its EXIF is asked for: loading a TIFF rotates it and drops the mark
    if is_deep(image):
        image = _to_eight_bits(image, depth)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image.convert("RGBA"))
        image = on_white
    return image.convert("RGB")


def decode(path: str | Path, read: Callable[[Image.Image], T]) -> T:
    """Open a picture and apply ``read``; UserError with one sentence for every way in which that fails."""
    path = Path(path)
    if not os.path.isfile(path):  # False, where Path.is_file raises: a folder that may not be searched
        raise UserError(f"There is no picture {path} that can be reached: check the path.")
    try:
        # Not by its path: Pillow would map a plain TIFF into memory, and garble it if it is to be rotated.
        with path.open("rb") as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return read(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read: replace or remove the file.") from None
    except (Image.DecompressionBombError, MemoryError):
        raise UserError(f"{path} is too large to be opened safely: make it smaller first.") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: change the file's permissions.") from None
    # A damaged file breaks Pillow's decoders in ways of every kind: OSError, SyntaxError, KeyError, struct.error, ...
    except Exception:
        raise UserError(f"{path} is cut off or damaged: copy or download it again, or remove it.") from None


def shrink(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The picture at no more than `max_pixels` pixels, its shape kept; None leaves it as it is.

    Nearest neighbour, as the released PA-SFT scales.
    """
    share = 1.0 if max_pixels is None else (max_pixels / (image.width * image.height)) ** 0.5
    if share >= 1:
        return image
    size = max(1, int(image.width * share)), max(1, int(image.height * share))
    return image.resize(size, Image.Resampling.NEAREST)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels as :func:`open_image` would give them, from the file's header alone."""

    def upright_size(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:
            return width, height  # to be asked for its EXIF, Pillow would decode the whole picture
        lies = image.getexif().get(_ORIENTATION, 1) in {5, 6, 7, 8}  # the orientations that lie on their side
        # Pillow's TIFF reader gives the upright size itself.
        return (height, width) if lies and image.format != "TIFF" else (width, height)

    return decode(path, upright_size)


def is_turned(path: str | Path) -> bool:
    """Whether a picture has an EXIF mark that turns or mirrors it."""
    return decode(path, lambda image: image.getexif().get(_ORIENTATION, 1) != 1)


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes, as hex. The same pixels saved in another format hash differently."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_DEPTHS: dict[str, float] = {}  # path of a grey picture of more than 8 bits -> the value that is white in its data set


def share_depth(paths: Iterable[str | Path]) -> None:
    """Have a data set's grey pictures of more than 8 bits scaled alike, whatever the brightest spot of each.

    The readers call it; whoever has only paths does so before opening the first. Other processes know nothing of it:
    see :func:`known_depths`.
    """
    tops: dict[bool, dict[str, float]] = {False: {}, True: {}}  # of integers and of floats
    for path in paths:
        with contextlib.suppress(UserError):  # raised again when it is opened
            if top := decode(path, lambda image: _highest(image) if is_deep(image) else None):
                tops[top[0]][os.path.abspath(path)] = top[1]
    for floats, alike in tops.items():
        _DEPTHS.update(dict.fromkeys(alike, _depth(floats, max(alike.values(), default=0))))


def depth_of(path: str | Path) -> float | None:
    """The value that is white in a picture's data set, as :func:`share_depth` found it; None for one of 8 bits."""
    return _DEPTHS.get(os.path.abspath(path))


def known_depths() -> dict[str, float]:
    """What :func:`share_depth` found, for another process to :func:`take_depths` before it opens pictures."""
    return dict(_DEPTHS)


def take_depths(depths: Mapping[str, float]) -> None:
    """Know what another process found, or what was noted when the data set was read."""
    _DEPTHS.update({os.path.abspath(path): depth for path, depth in depths.items()})


def is_deep(image: Image.Image) -> bool:
    """Whether a picture is grey of more than 8 bits, or of floats."""
    return image.mode == "F" or image.mode.startswith("I")


def _to_eight_bits(image: Image.Image, depth: float | None) -> Image.Image:
    """Grey values of more than 8 bits, or floats, to 8 bits. Pillow's own conversion would clip at 255."""
    exif = image.getexif()
    depth = depth or _depth(*_highest(image))
    values = np.nan_to_num(np.array(image, dtype=np.float32)).clip(0, depth)
    grey = Image.fromarray(np.round(values / (depth or 1.0) * 255).astype(np.uint8))
    grey.info["exif"] = exif.tobytes()  # the rotation is still to come
    return grey


def _highest(image: Image.Image) -> tuple[bool, float]:
    """Of a grey picture of more than 8 bits whether it is of floats, and its highest value or what its TIFF states."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # BitsPerSample
    values = np.asarray(image, dtype=np.float32)
    top = 2.0**bits - 1 if bits < 16 else float(values.max(initial=0, where=np.isfinite(values)))
    return image.mode == "F", top


def _depth(floats: bool, top: float) -> float:
    """The value that is white, where none is above `top`."""
    if floats and top <= 1:
        return 1.0
    return next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if top < 2**bits), top)
