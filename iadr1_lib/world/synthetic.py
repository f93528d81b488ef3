"""The mini world: pictures of surfaces and parts, drawn from a seed, with and without defects.

A *family* is one surface or one part with its own texture, colours and defect parameters; it plays the role that a
category ("screw", "carpet") plays in MVTec-AD. Families of the splits train, dev and test differ in texture
generator, part outline and defect parameters. Half of the normal pictures carry a *look-alike* (a printed mark, a
seam, a shadow, a natural knot), so that "something is there" is not yet "something is wrong".

Pictures are written in MVTec-AD's folder layout, so that they pass through the same loader as real data. One file
more, `notes.json`, keeps what the drawing knew and a mask does not tell: severity, and the look-alike with its cell.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from iadr1_lib.answer import DEFECT_TYPES, cell_of_mask

SIZE = 96
TILE = 288
DRAWING = "c02c05db55b4"  # names this way of drawing: change it with whatever changes a pixel (see the test)
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

LOOK_ALIKES = ("printed mark", "seam", "shadow", "knot")

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
_CENTRE = (SIZE - 1) / 2


@dataclass(frozen=True)
class Family:
    """One surface or part: `texture` and `outline` name a generator; `ink` is the hue range of its defects."""

    name: str
    split: str
    texture: str
    outline: str | None
    seed: int
    ink: tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """One picture. `image` uint8 (96, 96, 3); `mask` bool (96, 96), empty on a normal picture."""

    image: NDArray[np.uint8]
    mask: Mask
    defect_type: str | None
    severity: float
    look_alike: str | None
    look_alike_mask: Mask
    family: Family


# ---------------------------------------------------------------------------------------------- textures
# A texture is one tile of TILE x TILE values with mean 0 and deviation 1; a picture shows a random window of it.


def _filtered_noise(rng: np.random.Generator, along: float, across: float, angle: float = 0.0) -> Array:
    """Gaussian noise smoothed by `along` pixels in direction `angle` and `across` pixels at right angles to it."""
    fy, fx = np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE), indexing="ij")
    u, v = fx * np.cos(angle) + fy * np.sin(angle), -fx * np.sin(angle) + fy * np.cos(angle)
    window = np.exp(-2 * np.pi**2 * ((u * along) ** 2 + (v * across) ** 2))
    return np.real(np.fft.ifft2(np.fft.fft2(rng.standard_normal((TILE, TILE))) * window))


def _unit(tile: Array) -> Array:
    return (tile - tile.mean()) / (tile.std() + 1e-9)


def _axes(rng: np.random.Generator, warp: float = 0.0) -> tuple[Array, Array]:
    """Rotated coordinates of the tile in pixels, optionally warped by smooth noise of `warp` pixels."""
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float64)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    if warp:
        u = u + warp * _unit(_filtered_noise(rng, 18, 18))
        v = v + warp * _unit(_filtered_noise(rng, 18, 18))
    return u, v


def _grain(rng: np.random.Generator) -> Array:
    return _filtered_noise(rng, rng.uniform(6, 20), rng.uniform(0.6, 1.2), rng.uniform(0, np.pi))


def _cloud(rng: np.random.Generator) -> Array:
    fine, coarse = rng.uniform(0.8, 1.8), rng.uniform(5, 12)
    return _unit(_filtered_noise(rng, fine, fine)) * 0.6 + _unit(_filtered_noise(rng, coarse, coarse))


def _stripes(rng: np.random.Generator) -> Array:
    u, _ = _axes(rng, rng.uniform(0, 2))
    return np.sin(2 * np.pi * u / rng.uniform(6, 16)) + 0.5 * rng.standard_normal((TILE, TILE))


def _wood(rng: np.random.Generator) -> Array:
    u, v = _axes(rng, rng.uniform(3, 7))
    rings = np.sin(2 * np.pi * (u + 0.05 * v) / rng.uniform(8, 18))
    return rings + 0.8 * _unit(_filtered_noise(rng, 9, 0.8, rng.uniform(0, np.pi)))


def _weave(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    period = rng.uniform(5, 11)
    return np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period) + 0.4 * rng.standard_normal((TILE, TILE))


def _dots(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    period = rng.uniform(8, 14)
    bumps = np.cos(2 * np.pi * u / period) + np.cos(2 * np.pi * v / period)
    return np.clip(bumps, 0.6, None) + 0.15 * rng.standard_normal((TILE, TILE))


def _speckle(rng: np.random.Generator) -> Array:
    spots = (rng.random((TILE, TILE)) < rng.uniform(0.01, 0.04)).astype(np.float64)
    return ndimage.gaussian_filter(spots, rng.uniform(0.7, 1.3)) * 6 + 0.3 * _unit(_filtered_noise(rng, 4, 4))


def _ripple(rng: np.random.Generator) -> Array:
    u, v = _axes(rng, rng.uniform(4, 8))
    return np.sin(2 * np.pi * np.hypot(u - TILE / 3, v) / rng.uniform(9, 16)) + 0.4 * rng.standard_normal((TILE, TILE))


def _cells(rng: np.random.Generator) -> Array:
    seeds = rng.uniform(0, TILE, (int(rng.integers(500, 1100)), 2))
    places = np.mgrid[0:TILE, 0:TILE].reshape(2, -1).T
    near, far = cKDTree(seeds).query(places, k=2)[0].T
    return np.clip(far - near, 0, 3).reshape(TILE, TILE) + 0.3 * rng.standard_normal((TILE, TILE))


def _plaid(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    bands = [np.tanh(3 * np.sin(2 * np.pi * w / rng.uniform(9, 22))) for w in (u, v)]
    return bands[0] + bands[1] + 0.4 * rng.standard_normal((TILE, TILE))


def _camouflage(rng: np.random.Generator) -> Array:
    scale = rng.uniform(3, 7)
    return np.tanh(5 * _unit(_filtered_noise(rng, scale, scale))) + 0.3 * rng.standard_normal((TILE, TILE))


def _scales(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    period = rng.uniform(10, 16)
    row = np.floor(v / (period / 2))
    across = (u + (row % 2) * period / 2) % period - period / 2
    return np.hypot(across, v - row * period / 2) / period * 4 + 0.3 * rng.standard_normal((TILE, TILE))


def _leather(rng: np.random.Generator) -> Array:
    scale = rng.uniform(1.6, 2.6)
    return np.abs(_unit(_filtered_noise(rng, scale, scale))) + 0.1 * rng.standard_normal((TILE, TILE))


def _herringbone(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    period = rng.uniform(7, 11)
    zigzag = np.abs((v / (2 * period)) % 1 - 0.5) * 2 * period
    return np.sin(2 * np.pi * (u + zigzag) / period) + 0.4 * rng.standard_normal((TILE, TILE))


def _marble(rng: np.random.Generator) -> Array:
    u, v = _axes(rng, 10)
    return -(np.abs(np.sin(np.pi * (u + 0.3 * v) / rng.uniform(30, 44))) ** 0.5) + 0.1 * _unit(
        _filtered_noise(rng, 2, 2)
    )


def _hexmesh(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    k = 2 * np.pi / rng.uniform(9, 14)
    waves = sum(np.cos(k * (u * np.cos(a) + v * np.sin(a))) for a in (0, np.pi / 3, 2 * np.pi / 3))
    return np.clip(waves, -1.2, 0.8) + 0.2 * rng.standard_normal((TILE, TILE))


def _photograph(name: str) -> Callable[[np.random.Generator], Array]:
    """A real photograph that scikit-image ships (brick, grass, gravel: 512 x 512, grey), at half its size."""

    def texture(rng: np.random.Generator) -> Array:
        from skimage import data

        picture = np.asarray(getattr(data, name)(), dtype=np.float64)
        small = ndimage.zoom(picture, 0.6, order=1)
        return small[:TILE, :TILE]

    return texture


TEXTURES: dict[str, Callable[[np.random.Generator], Array]] = {
    "grain": _grain,
    "cloud": _cloud,
    "stripes": _stripes,
    "wood": _wood,
    "weave": _weave,
    "dots": _dots,
    "speckle": _speckle,
    "ripple": _ripple,
    "cells": _cells,
    "plaid": _plaid,
    "camouflage": _camouflage,
    "scales": _scales,
    "leather": _leather,
    "herringbone": _herringbone,
    "marble": _marble,
    "hexmesh": _hexmesh,
    "grass": _photograph("grass"),
    "brick": _photograph("brick"),
    "gravel": _photograph("gravel"),
}


@lru_cache(maxsize=512)
def _tile(texture: str, seed: int) -> Array:
    """Two octaves lie within one tile at most, so that a window never shows a single stroke of the texture."""
    tile = _unit(TEXTURES[texture](np.random.default_rng(seed)))
    return np.clip(tile, -2.5, 2.5)


# ---------------------------------------------------------------------------------------------- outlines
# An outline gives the signed distance in pixels to a part's edge (negative inside) at centred coordinates.


def _polygon(x: Array, y: Array, sides: int, radius: float) -> Array:
    angles = 2 * np.pi * np.arange(sides) / sides
    return np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0) - radius


def _box(x: Array, y: Array, half_width: float, half_height: float, corner: float = 3.0) -> Array:
    dx, dy = np.abs(x) - half_width + corner, np.abs(y) - half_height + corner
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda x, y: np.hypot(x, y) - 41,
    "plate": lambda x, y: _box(x, y, 40, 33),
    "capsule": lambda x, y: _box(x, y, 42, 25, 25),
    "triangle": lambda x, y: _polygon(x, y, 3, 25),
    "cross": lambda x, y: np.minimum(_box(x, y, 43, 19), _box(x, y, 19, 43)),
    "ellipse": lambda x, y: (np.hypot(x / 42, y / 31) - 1) * 35,
    "frame": lambda x, y: np.maximum(_box(x, y, 42, 38), -_box(x, y, 17, 13)),
    "horseshoe": lambda x, y: np.maximum(np.abs(np.hypot(x, y) - 29) - 14, -_box(x, y - 30, 9, 30)),
    "clover": lambda x, y: np.hypot(x, y) - 33 - 7 * np.cos(4 * np.arctan2(y, x)),
    "link": lambda x, y: np.maximum(_box(x, y, 43, 28, 26), 7 - np.hypot(np.abs(x) - 21, y)),
    "hexagon": lambda x, y: _polygon(x, y, 6, 38),
    "nut": lambda x, y: np.maximum(_polygon(x, y, 6, 38), 13 - np.hypot(x, y)),
    "bracket": lambda x, y: np.minimum(_box(x + 20, y, 20, 42), _box(x, y - 22, 42, 20)),
    "washer": lambda x, y: np.maximum(np.hypot(x, y) - 43, 12 - np.hypot(x, y)),
    "gear": lambda x, y: np.hypot(x, y) - 37 - 4 * np.tanh(3 * np.sin(10 * np.arctan2(y, x))),
    "bottle": lambda x, y: np.minimum(_box(x, y - 12, 27, 34, 9), _box(x, y + 32, 12, 14)),
}


# ---------------------------------------------------------------------------------------------- families

_INK_TRAIN, _INK_DEV, _INK_TEST = (0.0, 0.45), (0.45, 0.6), (0.6, 0.95)

TRAIN_TEXTURES = ("grain", "cloud", "stripes", "wood", "weave", "dots", "speckle", "ripple")
TRAIN_OUTLINES = (None, "disc", None, "plate", "capsule", None, "triangle", "cross", None, "ellipse", "frame")
# The kinds of SC-GRPO: more than PA-SFT has records for, as where a factory opens lines and only labels their output.
NEW_TEXTURES = (*TRAIN_TEXTURES, "cells", "plaid", "camouflage", "scales")
NEW_OUTLINES = (None, "frame", "disc", None, "horseshoe", "triangle", None, "clover", "plate", None, "link")

BENCHMARKS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "mini-washers": (("hexmesh", "washer"), ("marble", "washer")),
    "mini-gears": (("hexmesh", "gear"), ("marble", "gear")),
    "mini-bottles": (("hexmesh", "bottle"), ("marble", "bottle")),
    "mini-mesh": (("hexmesh", None), ("hexmesh", None)),
    "mini-marble": (("marble", None), ("marble", None)),
    "mini-masonry": (("brick", None), ("gravel", None)),
}


def train_families(count: int, start: int = 0, *, new_kinds: bool = False) -> list[Family]:
    """`count` families for Expert-AD, from number `start` on, so that PA-SFT and SC-GRPO may use different ones.

    `new_kinds` draws from NEW_TEXTURES and NEW_OUTLINES, which bring some that the others do not have.
    """
    textures, outlines = (NEW_TEXTURES, NEW_OUTLINES) if new_kinds else (TRAIN_TEXTURES, TRAIN_OUTLINES)
    return [
        Family(
            f"train_{i:03d}",
            "train",
            textures[i % len(textures)],
            outlines[(i // 2) % len(outlines)],
            seed=1000 + i,
            ink=_INK_TRAIN,
        )
        for i in range(start, start + count)
    ]


def dev_families() -> list[Family]:
    """Twelve families for every choice of a setting; none of their textures and outlines is in train or test."""
    kinds = [(t, o) for t in ("leather", "herringbone", "grass") for o in (None, "hexagon", "bracket", "nut")]
    return [Family(f"dev_{i}", "dev", t, o, seed=5000 + i, ink=_INK_DEV) for i, (t, o) in enumerate(kinds)]


def test_families() -> dict[str, list[Family]]:
    """The families of the six mini benchmarks, by benchmark. Opened for final numbers only."""
    return {
        benchmark: [
            Family(f"{benchmark.removeprefix('mini-')}_{i}", "test", t, o, seed=9000 + 10 * b + i, ink=_INK_TEST)
            for i, (t, o) in enumerate(kinds)
        ]
        for b, (benchmark, kinds) in enumerate(BENCHMARKS.items())
    }


# ---------------------------------------------------------------------------------------------- painting


def _hue(hue: float, value: float, saturation: float) -> Array:
    """RGB of a hue in [0, 1)."""
    ramp = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - ramp))


def _cover(distance: Array, softness: float = 1.0) -> Array:
    """Opacity in [0, 1] from a signed distance, with an edge `softness` pixels wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _blend(image: Array, opacity: Array, colour: Array | float) -> Array:
    return image + opacity[..., None] * (colour - image)


def _segment(x0: float, y0: float, x1: float, y1: float) -> Array:
    """Distance in pixels of every pixel to a segment."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((_X - x0) * dx + (_Y - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(_X - x0 - t * dx, _Y - y0 - t * dy)


def _blob(rng: np.random.Generator, x: float, y: float, radius: float, roughness: float = 0.35) -> Array:
    """Signed distance to an irregular round patch."""
    dx, dy = _X - x, _Y - y
    angle, rim = np.arctan2(dy, dx), np.ones_like(_X)
    for k in (2, 3, 5):
        rim += roughness * rng.uniform(-1, 1) / np.sqrt(k) * np.cos(k * angle + rng.uniform(0, 6.3))
    return np.hypot(dx, dy) - radius * np.maximum(rim, 0.3)


@dataclass(frozen=True)
class _Canvas:
    """A picture in the making: RGB in [0, 1], the inside of the part (all of it on a surface), its edge distance."""

    image: Array
    inside: Mask
    edge: Array
    background: Array
    family: Family


Painted = tuple[Array, Mask]
Painter = Callable[[np.random.Generator, _Canvas, float, float, float], Painted]


def _strength(severity: float) -> float:
    return 0.2 + 0.8 * severity


def _contamination(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    cover = _cover(_blob(rng, x, y, rng.uniform(7, 12)), 5.0)
    colour = _hue(rng.uniform(*canvas.family.ink), rng.uniform(0.2, 0.6), 0.6)
    return _blend(canvas.image, 0.75 * _strength(severity) * cover, colour), cover > 0.4


def _foreign_object(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    size = 3.0 + 2.5 * severity
    pellet = _polygon(_X - x, _Y - y, int(rng.integers(4, 7)), size)
    colour = _hue(rng.uniform(*canvas.family.ink), 0.9, 0.8)
    image = _blend(canvas.image, 0.5 * _strength(severity) * _cover(pellet - 1.5, 3.0), 0.05)  # its shadow
    image = _blend(image, _strength(severity) * _cover(pellet), colour)
    glint = np.hypot(_X - x + size / 3, _Y - y + size / 3) - 1.2
    return _blend(image, _strength(severity) * _cover(glint), 1.0), pellet < 0.5


def _scratch(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    angle, half = rng.uniform(0, np.pi), rng.uniform(9, 15)
    dx, dy = half * np.cos(angle), half * np.sin(angle)
    line = _segment(x - dx, y - dy, x + dx, y + dy)
    bright = rng.random() < 0.6
    image = _blend(canvas.image, _strength(severity) * _cover(line - 0.7), 0.97 if bright else 0.05)
    shade = _segment(x - dx + 1.6, y - dy + 1.6, x + dx + 1.6, y + dy + 1.6)
    return _blend(image, 0.4 * _strength(severity) * _cover(shade - 0.5), 0.1 if bright else 0.9), line < 1.5


def _missing_part(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    bite = _polygon(_X - x, _Y - y, int(rng.integers(3, 6)), 4 + 6 * severity) + 0.6 * rng.standard_normal()
    if canvas.family.outline is None:  # a chip: flat ground with one dark and one light edge
        rim = _cover(np.abs(bite) - 0.8)
        lit = np.where((_X - x) + (_Y - y) > 0, 0.95, 0.05)[..., None]
        image = _blend(canvas.image, (0.4 + 0.6 * severity) * _cover(bite), canvas.image.mean((0, 1)) * 0.75)
        return _blend(image, _strength(severity) * rim, lit), bite < 0
    mask = (bite < 0) & canvas.inside
    return _blend(canvas.image, _cover(bite) * _cover(canvas.edge), canvas.background), mask


def _deformation(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    radius, push = rng.uniform(11, 15), (4 + 7 * severity) * rng.choice([-1.0, 1.0])
    dx, dy = _X - x, _Y - y
    weight = np.exp(-(dx**2 + dy**2) / (2 * (radius / 2) ** 2))
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = _Y + push * weight * np.sin(angle), _X + push * weight * np.cos(angle)
    moved = np.stack(
        [ndimage.map_coordinates(canvas.image[..., c], (rows, columns), order=1, mode="nearest") for c in range(3)],
        -1,
    )
    relief = weight * (dx * np.cos(angle) + dy * np.sin(angle)) / radius
    return moved + (0.9 * _strength(severity) * relief)[..., None], weight > 0.4


def _hole(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    pit = _blob(rng, x, y, 3.0 + 3.5 * severity, 0.12)
    image = _blend(canvas.image, 0.7 * _strength(severity) * _cover(pit - 1.5, 1.5), 0.85)  # a worn, light rim
    return _blend(image, _strength(severity) * _cover(pit), 0.03), pit < 0.8


def _damage(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    distance = np.full((SIZE, SIZE), np.inf)
    for branch in range(3):  # cracks that run out from one point
        px, py, angle = x, y, rng.uniform(0, 2 * np.pi) / 3 + branch * 2 * np.pi / 3
        for _ in range(3):
            angle += rng.uniform(-0.7, 0.7)
            qx, qy = px + rng.uniform(4, 6) * np.cos(angle), py + rng.uniform(4, 6) * np.sin(angle)
            distance = np.minimum(distance, _segment(px, py, qx, qy))
            px, py = qx, qy
    return _blend(canvas.image, _strength(severity) * _cover(distance - 0.8), 0.04), distance < 1.8


def _abrasion(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    cover = _cover(_blob(rng, x, y, rng.uniform(9, 13)), 4.0)
    angle = rng.uniform(0, np.pi)
    across = (_X * np.cos(angle) + _Y * np.sin(angle)) * 2 * np.pi / 3.4
    hatch = np.sin(across + 0.8 * ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), 3) * 3)
    dull = canvas.image.mean(-1, keepdims=True) * 0.7 + 0.25
    worn = dull + 0.22 * hatch[..., None]
    return canvas.image + (0.9 * _strength(severity) * cover)[..., None] * (worn - canvas.image), cover > 0.4


DEFECTS: dict[str, Painter] = dict(
    zip(
        DEFECT_TYPES,
        (_contamination, _foreign_object, _scratch, _missing_part, _deformation, _hole, _damage, _abrasion),
        strict=True,
    )
)


def _printed_mark(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    r = rng.uniform(5, 8)
    shapes = (
        np.abs(np.hypot(_X - x, _Y - y) - r) - 1.0,  # ring
        np.minimum(_box(_X - x, _Y - y, r, 1.4, 0.5), _box(_X - x, _Y - y, 1.4, r, 0.5)),  # plus
        np.abs(_box(_X - x, _Y - y, r, r, 0.5)) - 1.0,  # frame
        np.minimum(_box(_X - x, _Y - y + 3, r, 1.2, 0.5), _box(_X - x, _Y - y - 3, r, 1.2, 0.5)),  # two bars
    )
    shape = shapes[int(rng.integers(len(shapes)))]
    ink = _hue(rng.random(), 0.25, 0.8)
    return _blend(canvas.image, _strength(severity) * _cover(shape) * canvas.inside, ink), shape < 1


def _seam(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    angle = rng.uniform(0, np.pi)
    distance = np.abs((_X - x) * np.sin(angle) - (_Y - y) * np.cos(angle))
    dash = ((_X * np.cos(angle) + _Y * np.sin(angle)) % 8 < 5) | (rng.random() < 0.5)
    line = _cover(distance - 1.0) * dash * canvas.inside
    return _blend(canvas.image, _strength(severity) * line, 0.12), (distance < 1.5) & canvas.inside


def _shadow(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    angle = rng.uniform(0, 2 * np.pi)
    cover = 1 / (1 + np.exp(((_X - x) * np.cos(angle) + (_Y - y) * np.sin(angle)) / rng.uniform(2, 5)))
    return canvas.image * (1 - 0.6 * _strength(severity) * cover)[..., None], cover > 0.5


def _knot(rng: np.random.Generator, canvas: _Canvas, x: float, y: float, severity: float) -> Painted:
    distance = np.hypot((_X - x) / rng.uniform(0.9, 1.6), _Y - y)
    rings = np.cos(distance * 2 * np.pi / 4.5) * np.exp(-((distance / 7) ** 2))
    colour = canvas.image.mean((0, 1)) * 0.45
    return _blend(canvas.image, _strength(severity) * np.clip(rings, 0, 1) * canvas.inside, colour), distance < 8


LOOK_ALIKE_PAINTERS: dict[str, Painter] = dict(zip(LOOK_ALIKES, (_printed_mark, _seam, _shadow, _knot), strict=True))


# ---------------------------------------------------------------------------------------------- one picture


def _look(family: Family) -> tuple[Array, Array, float]:
    """The family's own colours and contrast: part or surface colour, background colour, texture contrast."""
    rng = np.random.default_rng(family.seed + 1)
    colour = _hue(rng.random(), rng.uniform(0.45, 0.8), rng.uniform(0.05, 0.45))
    dark = rng.random() < 0.5
    background = _hue(rng.random(), rng.uniform(0.08, 0.2) if dark else rng.uniform(0.88, 0.98), 0.15)
    return colour, background, rng.uniform(0.03, 0.065)


def _blank(rng: np.random.Generator, family: Family) -> _Canvas:
    """The clean picture: a random window of the texture, cut out by the part's outline, lit from one side."""
    colour, ground, contrast = _look(family)
    top, left = rng.integers(0, TILE - SIZE, 2)
    window = _tile(family.texture, family.seed)[top : top + SIZE, left : left + SIZE]
    window = window[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
    image = colour * (1 + contrast * 1.6 * window[..., None])
    background = np.broadcast_to(ground, image.shape) * (1 + 0.03 * window[::-1, ::-1, None])
    edge = np.full((SIZE, SIZE), -SIZE, dtype=np.float64)
    if family.outline is not None:
        turn, scale = rng.uniform(-0.2, 0.2), rng.uniform(0.92, 1.02)
        x, y = (_X - _CENTRE - rng.uniform(-3, 3)) / scale, (_Y - _CENTRE - rng.uniform(-3, 3)) / scale
        edge = OUTLINES[family.outline](x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn))
        bevel = np.clip(1 + edge / 5, 0, 1) * 0.25
        image = _blend(background, _cover(edge), image * (1 - bevel[..., None]))
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.15)
    light = 1 + slope * ((_X - _CENTRE) * np.cos(angle) + (_Y - _CENTRE) * np.sin(angle)) / _CENTRE
    return _Canvas(image * light[..., None], edge < -2, edge, background * light[..., None], family)


def _somewhere(rng: np.random.Generator, canvas: _Canvas, on_edge: bool = False) -> tuple[float, float]:
    """A place on the part; cells of the 3x3 grid come up about equally often, as far as the part fills them."""
    allowed = (np.abs(canvas.edge + 2) < 2) if on_edge else canvas.edge < -7
    margin = 8
    allowed = allowed.copy()
    allowed[:margin], allowed[-margin:], allowed[:, :margin], allowed[:, -margin:] = (
        False,
        False,
        False,
        False,
    )
    third = SIZE // 3
    cells = [(r, c) for r in range(3) for c in range(3) if allowed[r * third :, c * third :][:third, :third].sum() > 20]
    r, c = cells[int(rng.integers(len(cells)))]
    rows, columns = np.nonzero(allowed[r * third : (r + 1) * third, c * third : (c + 1) * third])
    i = int(rng.integers(len(rows)))
    return float(columns[i] + c * third), float(rows[i] + r * third)


def draw(
    family: Family,
    seed: int,
    defect_type: str | None = None,
    *,
    severity: float | None = None,
    look_alike: str | None = "random",
) -> Drawing:
    """Draw one picture of `family`.

    Args:
        defect_type: one of the eight types, or None for a normal picture.
        severity: 0 barely visible to 1 glaring; drawn uniformly from 0.15 to 1 when None.
        look_alike: a name of LOOK_ALIKES, None, or "random" (half of the normal pictures, a quarter of the others).
    """
    rng = np.random.default_rng([family.seed, seed])
    canvas = _blank(rng, family)
    severity = float(rng.uniform(0.15, 1.0)) if severity is None else severity
    if look_alike == "random":
        share = 0.25 if defect_type else 0.5
        look_alike = str(rng.choice(LOOK_ALIKES)) if rng.random() < share else None
    look_alike_mask = np.zeros((SIZE, SIZE), dtype=bool)
    if look_alike is not None:
        image, look_alike_mask = LOOK_ALIKE_PAINTERS[look_alike](
            rng, canvas, *_somewhere(rng, canvas), rng.uniform(0.3, 1)
        )
        canvas = _Canvas(image, canvas.inside, canvas.edge, canvas.background, family)
    image, mask = canvas.image, np.zeros((SIZE, SIZE), dtype=bool)
    if defect_type is not None:
        on_edge = defect_type == "missing parts" and family.outline is not None
        image, mask = DEFECTS[defect_type](rng, canvas, *_somewhere(rng, canvas, on_edge), severity)
    exposure = rng.uniform(0.8, 1.0)  # so that a picture's mean brightness does not tell whether something was added
    noisy = image * exposure + rng.normal(0, 0.012, image.shape)
    pixels = (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)
    return Drawing(pixels, mask, defect_type, severity if defect_type else 0.0, look_alike, look_alike_mask, family)


def drawings(families: list[Family], count: int, seed: int) -> Iterator[Drawing]:
    """`count` pictures, families and defect types in turn, every second one normal."""
    step = (len(families) + 1) | 1  # odd, so that each family meets each type in turn
    for i in range(count):
        turn, place = divmod(i // 2, len(families))
        family = families[place]
        defect_type = DEFECT_TYPES[(turn * step + place) % len(DEFECT_TYPES)] if i % 2 else None
        yield draw(family, zlib.crc32(f"{seed}/{i}".encode()), defect_type)


# ---------------------------------------------------------------------------------------------- to disk


def write_world(root: Path, families: list[Family], count: int, seed: int, *, split: str = "test") -> None:
    """Write `count` pictures under `root` in MVTec-AD's layout, one category folder per family.

    `split` names the folder of the normal pictures ("train" or "test"); defective ones always lie in test/<type>, as in
    MVTec-AD. A world that is already there with the same arguments is left alone.
    """
    names = [f.name for f in families]
    stamp = {"families": names, "count": count, "seed": seed, "split": split, "drawn_by": DRAWING}
    done = root / "world.json"
    if done.exists() and done.read_text() == json.dumps(stamp):
        return
    shutil.rmtree(root, ignore_errors=True)  # pictures of another drawing must not mix in
    notes: dict[str, dict[str, dict[str, object]]] = {}
    for i, drawing in enumerate(drawings(families, count, seed)):
        kind = (drawing.defect_type or "good").replace(" ", "_")
        category = root / drawing.family.name
        folder = category / (split if drawing.defect_type is None else "test") / kind
        folder.mkdir(parents=True, exist_ok=True)
        image = folder / f"{i:05d}.png"
        Image.fromarray(drawing.image).save(
            image, compress_level=0
        )  # every file the same size: size must not tell the label
        if drawing.defect_type is not None:
            truth = category / "ground_truth" / kind
            truth.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawing.mask).save(truth / f"{i:05d}_mask.png")
        note: dict[str, object] = {"severity": round(drawing.severity, 3), "look_alike": drawing.look_alike}
        note["surface"] = drawing.family.texture
        if drawing.look_alike is not None and drawing.look_alike_mask.any():
            note["look_alike_cell"] = cell_of_mask(drawing.look_alike_mask)
        notes.setdefault(drawing.family.name, {})[image.relative_to(category).as_posix()] = note
    for name, lines in notes.items():
        (root / name / "notes.json").write_text(json.dumps(lines, indent=0, sort_keys=True))
    done.write_text(json.dumps(stamp))
