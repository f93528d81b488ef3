"""Marks: what is painted on a clean picture. Eight kinds of defects, and four look-alikes that are no defects.

A painter takes a brush and returns the new picture and the mask of the pixels that it marked. The order of the random
numbers is part of the drawing: see `drawing.DRAWING`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.world.families import Family
from iadr1_lib.world.outlines import Array, box, polygon

SIZE = 96  # width and height of a picture in pixels
Mask = NDArray[np.bool_]
Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)


@dataclass(frozen=True)
class Canvas:
    """A picture while it is painted.

    Attributes:
        image: RGB in [0, 1], SIZE x SIZE x 3.
        inside: the inside of the part; all of a surface.
        edge: signed distance in pixels to the part's edge, negative inside.
        background: RGB of what lies behind the part, SIZE x SIZE x 3.
    """

    image: Array
    inside: Mask
    edge: Array
    background: Array
    family: Family


@dataclass(frozen=True)
class Brush:
    """Where a mark is painted (x to the right, y down, in pixels) and its severity: 0 barely visible, 1 glaring."""

    rng: np.random.Generator
    canvas: Canvas
    x: float
    y: float
    severity: float

    @property
    def dx(self) -> Array:
        return X - self.x

    @property
    def dy(self) -> Array:
        return Y - self.y

    @property
    def strength(self) -> float:
        return 0.2 + 0.8 * self.severity

    def hue(self) -> float:
        """A hue of the family's defects."""
        return self.rng.uniform(*self.canvas.family.ink)


Painter = Callable[[Brush], tuple[Array, Mask]]


def colour_of(hue: float, value: float, saturation: float) -> Array:
    """RGB of a hue in [0, 1)."""
    ramp = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - ramp))


def opacity(distance: Array, softness: float = 1.0) -> Array:
    """Opacity in [0, 1] from a signed distance, with an edge `softness` pixels wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def blend(image: Array, opacity: Array, colour: Array | float) -> Array:
    return image + opacity[..., None] * (colour - image)


def segment(x0: float, y0: float, x1: float, y1: float) -> Array:
    """Distance in pixels of every pixel to a segment."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((X - x0) * dx + (Y - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(X - x0 - t * dx, Y - y0 - t * dy)


def blob(rng: np.random.Generator, x: float, y: float, radius: float, roughness: float = 0.35) -> Array:
    """Signed distance to an irregular round patch."""
    dx, dy = X - x, Y - y
    angle, rim = np.arctan2(dy, dx), np.ones_like(X)
    for k in (2, 3, 5):
        rim += roughness * rng.uniform(-1, 1) / np.sqrt(k) * np.cos(k * angle + rng.uniform(0, 6.3))
    return np.hypot(dx, dy) - radius * np.maximum(rim, 0.3)


def _contamination(b: Brush) -> tuple[Array, Mask]:
    stain = opacity(blob(b.rng, b.x, b.y, b.rng.uniform(7, 12)), 5.0)
    colour = colour_of(b.hue(), b.rng.uniform(0.2, 0.6), 0.6)
    return blend(b.canvas.image, 0.75 * b.strength * stain, colour), stain > 0.4


def _foreign_object(b: Brush) -> tuple[Array, Mask]:
    size = 3.0 + 2.5 * b.severity
    pellet = polygon(b.dx, b.dy, int(b.rng.integers(4, 7)), size)
    colour = colour_of(b.hue(), 0.9, 0.8)
    image = blend(b.canvas.image, 0.5 * b.strength * opacity(pellet - 1.5, 3.0), 0.05)  # its shadow
    image = blend(image, b.strength * opacity(pellet), colour)
    glint = np.hypot(b.dx + size / 3, b.dy + size / 3) - 1.2
    return blend(image, b.strength * opacity(glint), 1.0), pellet < 0.5


def _scratch(b: Brush) -> tuple[Array, Mask]:
    angle, half = b.rng.uniform(0, np.pi), b.rng.uniform(9, 15)
    dx, dy = half * np.cos(angle), half * np.sin(angle)
    line = segment(b.x - dx, b.y - dy, b.x + dx, b.y + dy)
    bright = b.rng.random() < 0.6
    image = blend(b.canvas.image, b.strength * opacity(line - 0.7), 0.97 if bright else 0.05)
    shade = segment(b.x - dx + 1.6, b.y - dy + 1.6, b.x + dx + 1.6, b.y + dy + 1.6)
    return blend(image, 0.4 * b.strength * opacity(shade - 0.5), 0.1 if bright else 0.9), line < 1.5


def _missing_part(b: Brush) -> tuple[Array, Mask]:
    bite = polygon(b.dx, b.dy, int(b.rng.integers(3, 6)), 4 + 6 * b.severity) + 0.6 * b.rng.standard_normal()
    image = b.canvas.image
    if b.canvas.family.outline is None:  # a chip: flat ground with one dark and one light edge
        rim = opacity(np.abs(bite) - 0.8)
        lit = np.where(b.dx + b.dy > 0, 0.95, 0.05)[..., None]
        ground = blend(image, (0.4 + 0.6 * b.severity) * opacity(bite), image.mean((0, 1)) * 0.75)
        return blend(ground, b.strength * rim, lit), bite < 0
    cut = opacity(bite) * opacity(b.canvas.edge)
    return blend(image, cut, b.canvas.background), (bite < 0) & b.canvas.inside


def _deformation(b: Brush) -> tuple[Array, Mask]:
    radius, push = b.rng.uniform(11, 15), (4 + 7 * b.severity) * b.rng.choice([-1.0, 1.0])
    weight = np.exp(-(b.dx**2 + b.dy**2) / (2 * (radius / 2) ** 2))
    angle = b.rng.uniform(0, 2 * np.pi)
    at = Y + push * weight * np.sin(angle), X + push * weight * np.cos(angle)
    channels = np.moveaxis(b.canvas.image, -1, 0)
    moved = np.stack([ndimage.map_coordinates(one, at, order=1, mode="nearest") for one in channels], -1)
    relief = weight * (b.dx * np.cos(angle) + b.dy * np.sin(angle)) / radius
    return moved + (0.9 * b.strength * relief)[..., None], weight > 0.4


def _hole(b: Brush) -> tuple[Array, Mask]:
    pit = blob(b.rng, b.x, b.y, 3.0 + 3.5 * b.severity, 0.12)
    image = blend(b.canvas.image, 0.7 * b.strength * opacity(pit - 1.5, 1.5), 0.85)  # a worn, light rim
    return blend(image, b.strength * opacity(pit), 0.03), pit < 0.8


def _damage(b: Brush) -> tuple[Array, Mask]:
    distance = np.full((SIZE, SIZE), np.inf)
    for branch in range(3):  # cracks that run out from one point
        x, y, angle = b.x, b.y, b.rng.uniform(0, 2 * np.pi) / 3 + branch * 2 * np.pi / 3
        for _ in range(3):
            angle += b.rng.uniform(-0.7, 0.7)
            end_x, end_y = x + b.rng.uniform(4, 6) * np.cos(angle), y + b.rng.uniform(4, 6) * np.sin(angle)
            distance = np.minimum(distance, segment(x, y, end_x, end_y))
            x, y = end_x, end_y
    return blend(b.canvas.image, b.strength * opacity(distance - 0.8), 0.04), distance < 1.8


def _abrasion(b: Brush) -> tuple[Array, Mask]:
    worn = opacity(blob(b.rng, b.x, b.y, b.rng.uniform(9, 13)), 4.0)
    angle = b.rng.uniform(0, np.pi)
    across = (X * np.cos(angle) + Y * np.sin(angle)) * 2 * np.pi / 3.4
    hatch = np.sin(across + 0.8 * ndimage.gaussian_filter(b.rng.standard_normal((SIZE, SIZE)), 3) * 3)
    dull = b.canvas.image.mean(-1, keepdims=True) * 0.7 + 0.25
    return blend(b.canvas.image, 0.9 * b.strength * worn, dull + 0.22 * hatch[..., None]), worn > 0.4


_DEFECTS = (_contamination, _foreign_object, _scratch, _missing_part, _deformation, _hole, _damage, _abrasion)
DEFECTS: dict[str, Painter] = dict(zip(DEFECT_TYPES, _DEFECTS, strict=True))


def _printed_mark(b: Brush) -> tuple[Array, Mask]:
    r, dx, dy = b.rng.uniform(5, 8), b.dx, b.dy
    shapes = (
        np.abs(np.hypot(dx, dy) - r) - 1.0,  # ring
        np.minimum(box(dx, dy, r, 1.4, 0.5), box(dx, dy, 1.4, r, 0.5)),  # plus
        np.abs(box(dx, dy, r, r, 0.5)) - 1.0,  # frame
        np.minimum(box(dx, dy + 3, r, 1.2, 0.5), box(dx, dy - 3, r, 1.2, 0.5)),  # two bars
    )
    shape = shapes[int(b.rng.integers(len(shapes)))]
    ink = colour_of(b.rng.random(), 0.25, 0.8)
    return blend(b.canvas.image, b.strength * opacity(shape) * b.canvas.inside, ink), shape < 1


def _seam(b: Brush) -> tuple[Array, Mask]:
    angle = b.rng.uniform(0, np.pi)
    distance = np.abs(b.dx * np.sin(angle) - b.dy * np.cos(angle))
    dash = ((X * np.cos(angle) + Y * np.sin(angle)) % 8 < 5) | (b.rng.random() < 0.5)
    line = opacity(distance - 1.0) * dash * b.canvas.inside
    return blend(b.canvas.image, b.strength * line, 0.12), (distance < 1.5) & b.canvas.inside


def _shadow(b: Brush) -> tuple[Array, Mask]:
    angle = b.rng.uniform(0, 2 * np.pi)
    shade = 1 / (1 + np.exp((b.dx * np.cos(angle) + b.dy * np.sin(angle)) / b.rng.uniform(2, 5)))
    return b.canvas.image * (1 - 0.6 * b.strength * shade)[..., None], shade > 0.5


def _knot(b: Brush) -> tuple[Array, Mask]:
    distance = np.hypot(b.dx / b.rng.uniform(0.9, 1.6), b.dy)
    rings = np.cos(distance * 2 * np.pi / 4.5) * np.exp(-((distance / 7) ** 2))
    colour = b.canvas.image.mean((0, 1)) * 0.45
    return blend(b.canvas.image, b.strength * np.clip(rings, 0, 1) * b.canvas.inside, colour), distance < 8


LOOK_ALIKE_PAINTERS: dict[str, Painter] = {
    "printed mark": _printed_mark, "seam": _seam, "shadow": _shadow, "knot": _knot,
}  # fmt: skip
LOOK_ALIKES = tuple(LOOK_ALIKE_PAINTERS)
