"""What can be measured of a picture and its mask: the only things a rule teacher may speak of."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from iadr1_lib.answer import GRID, Label, cell_box, cell_names, cell_of_mask
from iadr1_lib.data import category_of, open_image, read_mask, says_where
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample

LONGEST_SIDE = 512
MOST_PATCHES = 6  # whose cells are named
_SCALES = {  # the words for a measured value, each up to its limit
    "brightness": {0.33: "dark", 0.66: "mid-grey", np.inf: "bright"},
    "texture": {0.015: "smooth", 0.04: "finely textured", np.inf: "coarsely textured"},
    "size": {0.008: "small", 0.03: "medium", np.inf: "large"},
    "form": {1.8: "patch", 3.5: "streak", np.inf: "line"},
    "strength": {0.12: "slight", np.inf: "clear"},
    "step": {0.03: "hardly any", 0.12: "slight", np.inf: "clear"},
}


@dataclass(frozen=True)
class Surface:
    """What can be said of any picture as a whole, in grey levels from 0 to 1.

    `brightness` is the mean; `texture` the typical deviation within small windows; `brightest` and `darkest` name the
    cells with the highest and lowest mean, `difference` their distance; `liveliest` the cell with the most texture and
    `unrest` how many times the median cell's it has.
    """

    brightness: float
    texture: float
    brightest: str
    darkest: str
    difference: float
    liveliest: str
    unrest: float

    @property
    def brightness_word(self) -> str:
        return _word("brightness", self.brightness)

    @property
    def texture_word(self) -> str:
        return _word("texture", self.texture)


@dataclass(frozen=True)
class Facts:
    """What can be measured: the only things the rule teacher may speak of.

    `area` is the mask's share of the picture; `contrast` the mean absolute difference in grey level (0 to 1) between
    the mask's pixels and a ring around it, `difference` that of the means, `tone` its sign; `elongation` the ratio of
    the mask's axes. Of a mask of several patches `patches` is their number and `other_cells` the cells of those beside
    the largest; of the largest, `length` is the ratio of its axes, `direction` the longer one's ("" if there is none)
    and `width` the shorter one as a share of the picture's longer side.
    """

    label: Label
    location: str | None = None
    defect_type: str | None = None
    area: float = 0.0
    contrast: float = 0.0
    tone: str = ""
    elongation: float = 1.0
    look_alike: str | None = None
    look_alike_cell: str | None = None
    difference: float = 0.0
    length: float = 1.0
    direction: str = ""
    width: float = 0.0
    patches: int = 1
    other_cells: tuple[str, ...] = ()
    grid: int = GRID
    surface: Surface | None = None

    @property
    def size(self) -> str:
        return _word("size", self.area)

    @property
    def form(self) -> str:
        return _word("form", self.elongation)

    @property
    def shape(self) -> str:
        """Of the largest patch; unlike `form` it heeds how broad it is: a broad one is neither line nor streak."""
        word = _word("form", self.length)
        if word != "patch" and self.width > 0.08:
            return "elongated area"
        return "streak" if word == "line" and self.width >= 0.03 else word

    @property
    def strength(self) -> str:
        """Of the contrast, in one word."""
        return _word("strength", self.contrast)

    @property
    def step(self) -> str:
        """How far the mean brightness is from that of the surroundings; "mixed" where parts differ both ways."""
        word = _word("step", abs(self.difference))
        return "mixed" if word == "hardly any" and self.strength == "clear" else word

    @property
    def severity(self) -> str:
        """Severe if large and clear, slight if small and not clear, else moderate."""
        points = (self.size == "large") - (self.size == "small") + (self.step == "clear") - (self.step == "hardly any")
        return "severe" if points >= 2 else "slight" if points <= -1 else "moderate"


def _word(scale: str, value: float) -> str:
    return next(word for limit, word in _SCALES[scale].items() if value <= limit)


def measure(image: NDArray[np.uint8], mask: NDArray[np.bool_], grid: int = GRID) -> dict[str, Any]:
    """Area, contrast, tone, elongation, direction and patches of a mask on an RGB picture (height, width, 3).

    Contrast and form are measured at a side of at most 512 pixels: what a reader of the text can see.
    """
    step = -(-max(mask.shape) // LONGEST_SIDE)
    largest, patches = _patches(mask, grid)
    small = ndimage.maximum_filter(mask, step)[::step, ::step]
    grey = image[::step, ::step].mean(-1) / 255
    reach = max(2, round(0.04 * max(small.shape)))
    ring = ndimage.binary_dilation(small, iterations=reach) & ~ndimage.binary_dilation(small, iterations=1)
    around = grey[ring].mean() if ring.any() else grey.mean()
    difference = float(grey[small].mean() - around)
    return {
        "area": float(mask.mean()),
        "contrast": float(np.abs(grey[small] - around).mean()),
        "tone": "dark" if difference < -0.03 else "bright" if difference > 0.03 else "faint",
        "elongation": _axes(small)["length"],
        "difference": difference,
        **_axes(largest),
        **patches,
    }


def _axes(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Ratio of a mask's axes, the direction of the longer one if it is plainly longer, and the shorter one's length.

    The axes are those of the ellipse with the mask's second moments; the width is a share of the longer side. The
    sample covariance is used: skimage's regionprops divides by another count, and measures other digits.
    """
    rows, columns = np.nonzero(mask)
    if len(rows) <= 2:
        return {"length": 1.0, "direction": "", "width": 1 / max(mask.shape)}
    variances, axes = np.linalg.eigh(np.cov(np.stack([columns, rows])))
    narrow, wide = np.maximum(variances, 1e-6)
    across, down = np.abs(axes[:, 1])
    angle = np.degrees(np.arctan2(down, across))
    direction = "horizontally" if angle < 20 else "vertically" if angle > 70 else "diagonally"
    length, width = float(np.sqrt(wide / narrow)), float(4 * np.sqrt(narrow) / max(mask.shape))
    return {"length": length, "direction": direction if length > 1.8 else "", "width": width}


def _patches(mask: NDArray[np.bool_], grid: int) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """The largest patch of a mask; how many it has, specks aside (a twentieth of that), and the others' cells."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    numbers = [n for n in np.argsort(-sizes, kind="stable") if sizes[n] and sizes[n] >= sizes.max() / 20]
    first, *others = (cell_of_mask(labels == number, grid) for number in numbers[:MOST_PATCHES])
    cells = tuple(dict.fromkeys(cell for cell in others if cell != first))
    return labels == numbers[0], {"patches": len(numbers), "other_cells": cells}


def survey_surface(image: NDArray[np.uint8], grid: int = GRID) -> Surface:
    """What can be said of a whole RGB picture (height, width, 3), measured at a side of at most 512 pixels."""
    step = -(-max(image.shape[:2]) // LONGEST_SIDE)
    grey = image[::step, ::step].mean(-1) / 255
    window = max(3, round(0.03 * max(grey.shape)))
    mean = ndimage.uniform_filter(grey, window)
    deviation = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, window) - mean**2, 0))
    boxes = {cell: cell_box(cell, grey.shape[1], grey.shape[0], grid) for cell in cell_names(grid)}
    means = pd.Series({cell: grey[t:b, x:r].mean() for cell, (x, t, r, b) in boxes.items()})
    unrest = pd.Series({cell: deviation[t:b, x:r].mean() for cell, (x, t, r, b) in boxes.items()})
    return Surface(
        brightness=float(grey.mean()),
        texture=float(np.median(deviation)),
        brightest=str(means.idxmax()),
        darkest=str(means.idxmin()),
        difference=float(means.max() - means.min()),
        liveliest=str(unrest.idxmax()),
        unrest=float(unrest.max() / max(unrest.median(), 1e-6)),
    )


def note_of(image: str | Path) -> dict[str, Any]:
    """What the drawing noted of a picture in its category's notes.json; nothing for real ones."""
    path = Path(os.path.abspath(image))  # "good/0.png" has no category's folder above it otherwise
    if len(path.parents) < 3:
        return {}
    notes = path.parents[2] / "notes.json"
    read = _read_notes(notes, notes.stat().st_mtime_ns) if notes.is_file() else {}
    return read.get(path.relative_to(notes.parent).as_posix(), {})


@lru_cache(maxsize=256)
def _read_notes(path: Path, written: int) -> dict[str, dict[str, Any]]:
    """The notes as of the time `written`: a world drawn again brings new ones. A file of another program has none."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return notes if isinstance(notes, dict) and all(isinstance(note, dict) for note in notes.values()) else {}


def facts_of(sample: Sample, grid: int = GRID) -> Facts:
    """Measure a sample; `grid` is that of the place. Drawn pictures bring notes on look-alikes; real ones have none.

    Raises:
        UserError: picture or mask cannot be read, or a defective picture has no mask, or one that marks nothing or most
            of it or is of another size.
    """
    note, image = note_of(sample.image), np.asarray(open_image(sample.image))
    common: dict[str, Any] = {"look_alike": note.get("look_alike"), "look_alike_cell": note.get("look_alike_cell")}
    common |= {"surface": survey_surface(image, grid), "grid": grid}
    if sample.label == "no":
        return Facts(label="no", **common)
    if sample.mask is None:
        raise UserError(f"{sample.image} is defective but has no mask: leave the image out")
    mask = read_mask(sample.mask, sample.image)
    if not says_where(mask) or mask.shape != image.shape[:2]:
        why = "has another size than its picture" if says_where(mask) else "marks nothing or most of its picture"
        raise UserError(f"The mask {sample.mask} {why}: replace it or leave the image out")
    place, kind = cell_of_mask(mask, grid), category_of(sample)
    return Facts("yes", place, kind, **measure(image, mask, grid), **common)
