"""Boxes in place of a mask: a file that lists the defects of one picture as rectangles, each of a class.

Such a file stands where a sample has its mask: what lies in a box is defect. Three forms are known, by the file itself:

    <bndbox><xmin>2</xmin> ...        Pascal VOC (.xml): pixels; states the picture's size, as in NEU-DET
    513 376 549 402 1                 a row of text: left, top, right, bottom in pixels, class, as in DeepPCB
    2 0.8325 0.2617 0.1396 0.5234     a row of text: class, centre, width, height as shares of the picture, as YOLO's
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from iadr1_lib.errors import UserError
from iadr1_lib.files import read_text

_ROUNDING = 0.01  # pixels


class Box(NamedTuple):
    """A rectangle in pixels and the name or number of its class, as the file has it."""

    kind: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


def is_boxes(path: str | Path) -> bool:
    """Whether a sample's mask is a list of boxes, by the file's name."""
    return Path(path).suffix.lower() in {".xml", ".txt"}


def stated_size(path: str | Path) -> tuple[int, int] | None:
    """Width and height of the picture as the list states them; None for rows of text, which do not."""
    if Path(path).suffix.lower() != ".xml":
        return None
    root = _xml(Path(path))
    try:
        return int(str(root.findtext("size/width"))), int(str(root.findtext("size/height")))
    except ValueError:
        raise _unreadable(path) from None


def read_boxes(path: str | Path, size: tuple[int, int]) -> list[Box]:
    """The boxes of a picture of that width and height, cut off at its edges; those without area are left out.

    Raises:
        UserError: the file is missing or no such list, or a box lies outside of the picture.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".xml":
            boxes = [*_voc_boxes(_xml(path), size)]
        else:
            boxes = [_row_box(line.split(), size) for line in read_text(path).splitlines() if line.strip()]
        return [box for box in boxes if box.area]  # a slip of the annotator's mouse, as in WoodSurface
    except (OSError, ValueError, TypeError):
        raise _unreadable(path) from None


def largest_kind(boxes: Sequence[Box]) -> str | None:
    """The class of the largest box, whose place is as a rule that of the whole mask; None without boxes."""
    return max(boxes, key=lambda box: box.area).kind if boxes else None


def boxes_mask(boxes: Sequence[Box], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The boxes as a mask of height x width; a pixel that a box touches is marked."""
    mask = np.zeros(size[::-1], dtype=bool)
    for box in boxes:  # a share of the picture is a whole number of pixels but for its last digits
        left, top = (math.floor(side + _ROUNDING) for side in (box.left, box.top))
        right, bottom = (math.ceil(side - _ROUNDING) for side in (box.right, box.bottom))
        mask[top:bottom, left:right] = True
    return mask


def _voc_boxes(root: ElementTree.Element, size: tuple[int, int]) -> Iterator[Box]:
    for entry in root.iter("object"):
        sides = [float(str(entry.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax")]
        yield _box(str(entry.findtext("name")), sides, size)


def _row_box(words: list[str], size: tuple[int, int]) -> Box:
    shares = [float(word) for word in words[1:]]
    if len(shares) != 4:
        raise ValueError("a row has five columns")
    if max(shares) >= 2:  # pixels, and the class comes last; a share may pass 1 by rounding
        return _box(words[4], [float(word) for word in words[:4]], size)
    x, y, width, height = shares
    sides = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return _box(words[0], [side * length for side, length in zip(sides, 2 * size, strict=True)], size)


def _box(kind: str, sides: Sequence[float], size: tuple[int, int]) -> Box:
    (left, top, right, bottom), (width, height) = sides, size
    if not (left <= right >= 0 and top <= bottom >= 0 and left <= width and top <= height):
        raise ValueError("turned around, no numbers, or outside of the picture")
    return Box(kind, max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))


def _xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(read_text(path))
    except (OSError, ValueError, ElementTree.ParseError):
        raise _unreadable(path) from None


def _unreadable(path: str | Path) -> UserError:
    return UserError(f"{path} is no list of boxes inside a picture: correct it, or copy or download it again.")
