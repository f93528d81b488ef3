"""Outlines of parts: each gives the signed distance in pixels to the part's edge, negative inside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def polygon(x: Array, y: Array, sides: int, radius: float) -> Array:
    """Signed distance to a regular polygon around (0, 0) whose inscribed circle has `radius` pixels."""
    angles = 2 * np.pi * np.arange(sides) / sides
    return np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0) - radius


def box(x: Array, y: Array, half_width: float, half_height: float, corner: float = 3.0) -> Array:
    """Signed distance to a rectangle around (0, 0) with rounded corners."""
    dx, dy = np.abs(x) - half_width + corner, np.abs(y) - half_height + corner
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


# x to the right and y down, in pixels from the part's centre.
OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda x, y: np.hypot(x, y) - 41,
    "plate": lambda x, y: box(x, y, 40, 33),
    "capsule": lambda x, y: box(x, y, 42, 25, 25),
    "triangle": lambda x, y: polygon(x, y, 3, 25),
    "cross": lambda x, y: np.minimum(box(x, y, 43, 19), box(x, y, 19, 43)),
    "ellipse": lambda x, y: (np.hypot(x / 42, y / 31) - 1) * 35,
    "frame": lambda x, y: np.maximum(box(x, y, 42, 38), -box(x, y, 17, 13)),
    "horseshoe": lambda x, y: np.maximum(np.abs(np.hypot(x, y) - 29) - 14, -box(x, y - 30, 9, 30)),
    "clover": lambda x, y: np.hypot(x, y) - 33 - 7 * np.cos(4 * np.arctan2(y, x)),
    "link": lambda x, y: np.maximum(box(x, y, 43, 28, 26), 7 - np.hypot(np.abs(x) - 21, y)),
    "hexagon": lambda x, y: polygon(x, y, 6, 38),
    "nut": lambda x, y: np.maximum(polygon(x, y, 6, 38), 13 - np.hypot(x, y)),
    "bracket": lambda x, y: np.minimum(box(x + 20, y, 20, 42), box(x, y - 22, 42, 20)),
    "washer": lambda x, y: np.maximum(np.hypot(x, y) - 43, 12 - np.hypot(x, y)),
    "gear": lambda x, y: np.hypot(x, y) - 37 - 4 * np.tanh(3 * np.sin(10 * np.arctan2(y, x))),
    "bottle": lambda x, y: np.minimum(box(x, y - 12, 27, 34, 9), box(x, y + 32, 12, 14)),
}
