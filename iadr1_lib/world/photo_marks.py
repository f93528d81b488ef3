"""Defects painted on a picture of 288 x 288 pixels: eight kinds, in many sizes and strengths.

`paint_defect` takes a canvas and returns the new picture and the mask of the pixels that it changed; `photographs`
makes the canvases. `marks` does the same at 96 pixels for the drawn world, whose pixels must not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.world.marks import colour_of
from iadr1_lib.world.outlines import box, polygon

SIDE = 288
Y, X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
Pixels = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


@dataclass
class Canvas:
    """A picture while it is painted: RGB in [0, 1]; signed distance to the part's edge; what lies behind the part."""

    image: Pixels
    edge: Pixels
    behind: Pixels
    elements: list[Pixels] = field(default_factory=list)  # signed distances of an assembly's elements


def soft_noise(rng: np.random.Generator, cells: int) -> Pixels:
    """Smooth noise with standard deviation 1, about `cells` blobs across the picture."""
    grid = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    noise = np.asarray(Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def cover_of(distance: Pixels, softness: float = 1.5) -> Pixels:
    return np.clip(0.5 - distance / softness, 0, 1)


def mix(image: Pixels, cover: Pixels, colour: Pixels | float) -> Pixels:
    return image + cover[..., None] * (colour - image)


def paint_defect(
    rng: np.random.Generator,
    canvas: Canvas,
    defect_type: str,
    severity: float | None,
    noise: float,
    other_surface: Callable[[], Pixels],
) -> tuple[Pixels, Mask]:
    """A defect that can be told from noise: one that cannot be seen is none."""
    severity = float(rng.uniform(0.1, 1.0)) if severity is None else severity
    for strength in (severity, (severity + 1) / 2, 1.0):
        image, mask = _paint(rng, canvas, other_surface, defect_type, strength)
        change = np.abs(image - canvas.image).mean(-1)
        if mask.sum() >= 12 and change[mask].mean() > 0.03 + noise:
            break
    return image, mask


@dataclass(frozen=True)
class _Brush:
    rng: np.random.Generator
    canvas: Canvas
    other_surface: Callable[[], Pixels]
    x: float
    y: float
    severity: float

    @property
    def opacity(self) -> float:
        return 0.3 + 0.7 * self.severity

    def radius(self, low: float, high: float) -> float:
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def blob(self, radius: float, roughness: float = 0.35) -> Pixels:
        """Signed distance to an irregular patch, longer than broad."""
        stretch, turn = self.rng.uniform(1, 2.2), self.rng.uniform(0, np.pi)
        dx, dy = X - self.x, Y - self.y
        u = (dx * np.cos(turn) + dy * np.sin(turn)) / stretch
        v = (-dx * np.sin(turn) + dy * np.cos(turn)) * stretch**0.5
        angle, rim = np.arctan2(v, u), np.ones_like(u)
        for k in (2, 3, 5, 8):
            rim += roughness * self.rng.uniform(-1, 1) / np.sqrt(k) * np.cos(k * angle + self.rng.uniform(0, 6.3))
        return np.hypot(u, v) - radius * np.maximum(rim, 0.3)

    def path(self, length: float, bend: float) -> Pixels:
        """Distance to a winding line through the place."""
        step, angle = length / 8, self.rng.uniform(0, 2 * np.pi)
        x, y = self.x - length / 2 * np.cos(angle), self.y - length / 2 * np.sin(angle)
        distance = np.full((SIDE, SIDE), 1e3, dtype=np.float32)
        for _ in range(8):
            angle += self.rng.normal() * bend
            x1, y1 = x + step * np.cos(angle), y + step * np.sin(angle)
            distance = np.minimum(distance, _segment(x, y, x1, y1))
            x, y = x1, y1
        return distance

    def colour(self) -> Pixels:
        """Paint of a stain or a foreign body: dark, bright, or of any hue."""
        kind = self.rng.random()
        if kind < 0.4:
            return np.full(3, self.rng.uniform(0, 0.25), dtype=np.float32)
        if kind < 0.6:
            return np.full(3, self.rng.uniform(0.8, 1.0), dtype=np.float32)
        return colour_of(self.rng.random(), self.rng.uniform(0.3, 0.9), self.rng.uniform(0.3, 0.9)).astype(np.float32)


def _segment(x0: float, y0: float, x1: float, y1: float) -> Pixels:
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((X - x0) * dx + (Y - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(X - x0 - t * dx, Y - y0 - t * dy)


def _place(rng: np.random.Generator, canvas: Canvas, on_edge: bool) -> tuple[float, float]:
    """A place on the part; cells of the 3 x 3 grid come up about equally often."""
    edge = canvas.edge[::4, ::4]
    allowed = (np.abs(edge + 6) < 6) if on_edge else edge < -12
    allowed[:4], allowed[-4:], allowed[:, :4], allowed[:, -4:] = False, False, False, False
    rows, columns = np.nonzero(allowed if allowed.any() else edge < 1e6)
    cells = rows // 24 * 3 + columns // 24
    chosen = rng.choice(np.unique(cells))
    here = np.nonzero(cells == chosen)[0]
    i = int(here[int(rng.integers(len(here)))])
    return float(columns[i] * 4 + 1.5), float(rows[i] * 4 + 1.5)


def _contamination(b: _Brush) -> tuple[Pixels, Mask]:
    stain = cover_of(b.blob(b.radius(7, 45)), b.rng.uniform(3, 14))
    if b.rng.random() < 0.3:  # spatter
        drops = np.full((SIDE, SIDE), 1e3, dtype=np.float32)
        for _ in range(int(b.rng.integers(3, 9))):
            dx, dy = b.rng.normal(0, 18, 2)
            drops = np.minimum(drops, np.hypot(X - b.x - dx, Y - b.y - dy) - b.rng.uniform(2, 7))
        stain = cover_of(drops, 2.5)
    if b.rng.random() < 0.35:  # it darkens or lightens what lies below
        factor = b.rng.uniform(0.3, 0.6) if b.rng.random() < 0.7 else b.rng.uniform(1.4, 1.9)
        return b.canvas.image * (1 + b.opacity * stain * (factor - 1))[..., None], stain > 0.4
    return mix(b.canvas.image, 0.85 * b.opacity * stain, b.colour()), stain > 0.4


def _foreign_object(b: _Brush) -> tuple[Pixels, Mask]:
    if b.rng.random() < 0.35:  # a fibre
        body = b.path(b.radius(30, 160), 0.5) - b.rng.uniform(0.8, 2.5)
    else:
        turn = b.rng.uniform(0, np.pi)
        dx, dy = X - b.x, Y - b.y
        u, v = dx * np.cos(turn) + dy * np.sin(turn), -dx * np.sin(turn) + dy * np.cos(turn)
        size = b.radius(6, 26)
        body = (
            polygon(u, v, int(b.rng.integers(3, 7)), size) if b.rng.random() < 0.6 else box(u, v, size * 1.6, size / 2)
        )
    image = mix(b.canvas.image, 0.5 * b.opacity * cover_of(body - 2, 6), 0.05)  # its shadow
    paint = b.colour()
    if b.rng.random() < 0.3:
        paint = b.other_surface() * 0.9
    return mix(image, min(1.0, b.opacity + 0.3) * cover_of(body.astype(np.float32)), paint), body < 1


def _scratch(b: _Brush) -> tuple[Pixels, Mask]:
    bright, image = b.rng.random() < 0.55, b.canvas.image
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for _ in range(int(b.rng.choice([1, 1, 1, 2, 4]))):
        line = b.path(b.radius(30, 200), 0.06)
        width = b.rng.uniform(0.4, 1.8)
        image = mix(image, b.opacity * cover_of(line - width), 0.97 if bright else 0.04)
        mask |= line < width + 1.5
    return image, mask


def _missing_part(b: _Brush) -> tuple[Pixels, Mask]:
    image, inside = b.canvas.image, b.canvas.edge < 0
    if b.canvas.elements and b.rng.random() < 0.8:  # an element is not there, or only a piece of it
        whole = [e for e in b.canvas.elements if 150 < (e < 0).sum() < 15000]
        if whole:
            gone = whole[int(b.rng.integers(len(whole)))]
            cover = cover_of(gone - 2)
            if b.rng.random() < 0.3:
                cover = cover * (np.median(X[gone < 0]) < X)
            return mix(image, cover, b.canvas.behind), cover > 0.5
    bite = b.blob(b.radius(10, 38), 0.5)
    if (b.canvas.edge > 0).any():
        return mix(image, cover_of(bite) * cover_of(b.canvas.edge), b.canvas.behind), (bite < 0) & inside
    rim = np.abs(bite) - 2
    lit = np.where(X - b.x + Y - b.y > 0, 0.9, 0.08).astype(np.float32)[..., None]
    image = mix(image, b.opacity * cover_of(bite, 3), image.mean((0, 1)) * b.rng.uniform(0.5, 0.9))
    return mix(image, 0.8 * b.opacity * cover_of(rim), lit), bite < 1


def _deformation(b: _Brush) -> tuple[Pixels, Mask]:
    radius = b.radius(18, 60)
    weight = np.exp(-((X - b.x) ** 2 + (Y - b.y) ** 2) / (2 * (radius / 1.8) ** 2))
    if b.rng.random() < 0.4:  # turned
        turn = (0.6 + 1.4 * b.severity) * b.rng.choice([-1, 1]) * weight
        u, v = X - b.x, Y - b.y
        at = [b.y + u * np.sin(turn) + v * np.cos(turn), b.x + u * np.cos(turn) - v * np.sin(turn)]
    else:
        push, angle = (0.25 + 0.5 * b.severity) * radius * b.rng.choice([-1, 1]), b.rng.uniform(0, 6.3)
        at = [Y + push * weight * np.sin(angle), X + push * weight * np.cos(angle)]
    moved = np.stack(
        [ndimage.map_coordinates(b.canvas.image[..., c], at, order=1, mode="nearest") for c in range(3)], -1
    )
    angle = b.rng.uniform(0, 6.3)
    relief = weight * ((X - b.x) * np.cos(angle) + (Y - b.y) * np.sin(angle)) / radius  # a dent or bump
    return moved + (0.6 * b.severity * relief).astype(np.float32)[..., None], weight > 0.4


def _hole(b: _Brush) -> tuple[Pixels, Mask]:
    pit = b.blob(b.radius(4, 22), 0.12)
    image = b.canvas.image
    if b.rng.random() < 0.5:
        image = mix(image, 0.6 * b.opacity * cover_of(pit - 3, 4), b.rng.uniform(0.7, 1.0))  # a worn, light rim
    return mix(image, (0.5 + 0.5 * b.severity) * cover_of(pit, 2.5), b.rng.uniform(0.0, 0.12)), pit < 1.5


def _damage(b: _Brush) -> tuple[Pixels, Mask]:
    distance = np.full((SIDE, SIDE), 1e3, dtype=np.float32)
    for _ in range(int(b.rng.choice([1, 2, 3, 4]))):  # cracks that run out from one point
        x, y, angle = b.x, b.y, b.rng.uniform(0, 2 * np.pi)
        step = b.radius(5, 22)
        for _ in range(int(b.rng.integers(3, 8))):
            angle += b.rng.normal() * 0.5
            x1, y1 = x + step * np.cos(angle), y + step * np.sin(angle)
            distance = np.minimum(distance, _segment(x, y, x1, y1))
            x, y = x1, y1
    width = b.rng.uniform(0.4, 2.2) * (1 + 0.4 * soft_noise(b.rng, 30))
    image = mix(b.canvas.image, b.opacity * cover_of(distance - width), b.rng.uniform(0.0, 0.15))
    return image, distance < 3


def _abrasion(b: _Brush) -> tuple[Pixels, Mask]:
    worn = cover_of(b.blob(b.radius(14, 55)), b.rng.uniform(4, 16))
    blurred = ndimage.gaussian_filter(b.canvas.image, (3, 3, 0))
    angle, pitch = b.rng.uniform(0, np.pi), b.rng.uniform(4, 11)
    streaks = np.sin((X * np.cos(angle) + Y * np.sin(angle)) * 6.28 / pitch + 1.5 * soft_noise(b.rng, 12))
    dull = blurred.mean(-1, keepdims=True) * b.rng.uniform(0.5, 0.8) + b.rng.uniform(0.1, 0.35)
    return mix(b.canvas.image, b.opacity * worn, dull + b.rng.uniform(0, 0.15) * streaks[..., None]), worn > 0.4


_PAINTERS: dict[str, Callable[[_Brush], tuple[Pixels, Mask]]] = dict(
    zip(
        DEFECT_TYPES,
        (_contamination, _foreign_object, _scratch, _missing_part, _deformation, _hole, _damage, _abrasion),
        strict=True,
    )
)


def _paint(
    rng: np.random.Generator,
    canvas: Canvas,
    other_surface: Callable[[], Pixels],
    defect_type: str,
    severity: float,
) -> tuple[Pixels, Mask]:
    x, y = _place(rng, canvas, on_edge=defect_type == "missing parts" and bool((canvas.edge > 0).any()))
    image, mask = _PAINTERS[defect_type](_Brush(rng, canvas, other_surface, x, y, severity))
    image = np.clip(image, 0, 1).astype(np.float32)
    outside = canvas.edge > 4  # a defect is of the part
    if outside.any() and defect_type != "presence of foreign objects":
        image = np.where(outside[..., None], canvas.image, image)
        mask = mask & ~outside
    return image, mask
