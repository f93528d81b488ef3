"""From a mask's file to the pixels that are defect, and to the defect's place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iadr1_lib.answer import cell_of_mask
from iadr1_lib.data.boxes import boxes_mask, is_boxes, read_boxes, stated_size
from iadr1_lib.data.folders import entry_fault, list_pictures, visible
from iadr1_lib.data.images import decode, image_size, is_deep
from iadr1_lib.data.table import refuse
from iadr1_lib.errors import UserError

# Sound masks of real sets mark up to 63 % of their picture (tests/test_layouts.py looks at all that are at hand),
# inverted ones all but the defect.
MOST = 0.75
Mask = NDArray[np.bool_]


def mask_location(path: str | Path, image: str | Path | None = None) -> str | None:
    """The mask's cell of the 3x3 grid; None for a mask that says no place or cannot be read (the checks name both)."""
    try:
        mask = read_mask(path, image)
    except UserError:
        return None
    return cell_of_mask(mask) if says_where(mask) else None


def says_where(mask: Mask) -> bool:
    """False for a mask that marks nothing or more than MOST of its picture."""
    return bool(0 < mask.mean() <= MOST)


def read_mask(path: str | Path, image: str | Path | None = None) -> Mask:
    """Read a mask as a bool array of height x width: whatever is not black, and not transparent, is defect.

    Masks come as 0/255, as 0/1 and with a class number per defect; "above 0" is right for all three. In a lossy file
    (JPEG, lossy WebP) it is above half of the largest value, since compression leaves a halo. Palettes are read as
    their colours. Where some is transparent and the rest black, whatever is not transparent is defect. Of a folder, the
    masks are united. Of a list of boxes (see `boxes`), what lies in one is defect.

    Args:
        path: of a file or folder, as a sample has it.
        image: the picture that it belongs to. A list of boxes that does not state a size has that of its picture.

    Raises:
        UserError: a file is missing, is no picture, is cut off, or has more than MAX_PIXELS; the masks of a folder are
            of several sizes; a list of boxes is damaged.
    """
    if is_boxes(path):
        size = mask_size(path, image)
        return boxes_mask(read_boxes(path, size), size)
    masks = [decode(file, _marked) for file in mask_files(path)]
    if len({mask.shape for mask in masks}) > 1:
        raise UserError(f"The masks in {path} are of several sizes: replace those of another size than the picture.")
    return np.asarray(np.logical_or.reduce(masks))


def mask_size(path: str | Path, image: str | Path | None = None) -> tuple[int, int]:
    """Width and height of a mask from its header alone; arguments and errors as for :func:`read_mask`."""
    if not is_boxes(path):
        return image_size(mask_files(path)[0])
    if size := stated_size(path):
        return size
    if image is None:
        raise UserError(f"{path} lists boxes, but not the size of their picture: name the picture, too.")
    return image_size(image)


def mask_files(path: str | Path) -> list[Path]:
    """The files of a sample's mask: itself (a picture or a list of boxes), or all pictures of a folder.

    Raises UserError for a folder without pictures or with links that lead out of it.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return [path]
    refuse(fault for entry in visible(path) if (fault := entry_fault(entry, path)))
    files = list_pictures(path, path)
    if not files:
        raise UserError(f"There is no mask in the folder {path}: put it there or remove the folder.")
    return files


def _marked(image: Image.Image) -> Mask:
    lossy = _is_lossy(image)  # asked first: once loaded, the file is closed
    image.load()
    image = ImageOps.exif_transpose(image)
    if is_deep(image) or (image.mode in {"1", "L"} and not image.has_transparency_data):
        return _above(np.asarray(image), lossy)
    layers = np.asarray(image.convert("RGBA"))
    colours, opaque = layers[..., :3].max(axis=2), _above(layers[..., 3], lossy)
    if image.mode == "P" and not np.ptp(colours) and np.ptp(np.asarray(image)):
        colours = np.asarray(image)  # the palette tells nothing, its numbers do
    marked = _above(colours, lossy)
    if opaque.all() or not opaque.any():  # transparency tells nothing
        return marked
    return marked & opaque if (marked & opaque).any() else opaque


def _above(values: np.ndarray, lossy: bool) -> Mask:
    return np.asarray(values > (values.max(initial=0) / 2 if lossy else 0))


def _is_lossy(image: Image.Image) -> bool:
    """Whether a file not yet loaded was compressed with loss, as its format says."""
    if image.format == "WEBP" and (file := getattr(image, "fp", None)):
        file.seek(0)
        return b"VP8 " in file.read()  # the chunk of lossy pictures; VP8L is the other kind
    return image.format in {"JPEG", "MPO"} or image.info.get("compression") in {"jpeg", "tiff_jpeg"}
