"""Textures of surfaces: each is one tile of TILE x TILE values, of which a picture shows a random window.

A generator takes a random generator and returns a tile; `tile` brings it to mean 0 and standard deviation 1. The order
of the random numbers is part of the drawing: see `drawing.DRAWING`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

TILE = 288
Array = NDArray[np.float64]
Texture = Callable[[np.random.Generator], Array]


def _white(rng: np.random.Generator) -> Array:
    return rng.standard_normal((TILE, TILE))


def _filtered_noise(rng: np.random.Generator, along: float, across: float, angle: float = 0.0) -> Array:
    """Gaussian noise smoothed by `along` pixels in direction `angle` and `across` pixels at right angles to it."""
    fy, fx = np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE), indexing="ij")
    u, v = fx * np.cos(angle) + fy * np.sin(angle), -fx * np.sin(angle) + fy * np.cos(angle)
    window = np.exp(-2 * np.pi**2 * ((u * along) ** 2 + (v * across) ** 2))
    return np.real(np.fft.ifft2(np.fft.fft2(_white(rng)) * window))


def _unit(tile: Array) -> Array:
    return (tile - tile.mean()) / (tile.std() + 1e-9)


def _soft(rng: np.random.Generator, scale: float) -> Array:
    """Smooth noise of deviation 1, the same in all directions."""
    return _unit(_filtered_noise(rng, scale, scale))


def _axes(rng: np.random.Generator, warp: float = 0.0) -> tuple[Array, Array]:
    """Rotated coordinates of the tile in pixels, optionally warped by smooth noise of `warp` pixels."""
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float64)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    if warp:
        u = u + warp * _soft(rng, 18)
        v = v + warp * _soft(rng, 18)
    return u, v


def grain(rng: np.random.Generator) -> Array:
    return _filtered_noise(rng, rng.uniform(6, 20), rng.uniform(0.6, 1.2), rng.uniform(0, np.pi))


def cloud(rng: np.random.Generator) -> Array:
    fine, coarse = rng.uniform(0.8, 1.8), rng.uniform(5, 12)
    return _soft(rng, fine) * 0.6 + _soft(rng, coarse)


def stripes(rng: np.random.Generator) -> Array:
    u, _ = _axes(rng, rng.uniform(0, 2))
    return np.sin(2 * np.pi * u / rng.uniform(6, 16)) + 0.5 * _white(rng)


def wood(rng: np.random.Generator) -> Array:
    u, v = _axes(rng, rng.uniform(3, 7))
    rings = np.sin(2 * np.pi * (u + 0.05 * v) / rng.uniform(8, 18))
    return rings + 0.8 * _unit(_filtered_noise(rng, 9, 0.8, rng.uniform(0, np.pi)))


def weave(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    period = rng.uniform(5, 11)
    return np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period) + 0.4 * _white(rng)


def dots(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    period = rng.uniform(8, 14)
    bumps = np.cos(2 * np.pi * u / period) + np.cos(2 * np.pi * v / period)
    return np.clip(bumps, 0.6, None) + 0.15 * _white(rng)


def speckle(rng: np.random.Generator) -> Array:
    spots = (rng.random((TILE, TILE)) < rng.uniform(0.01, 0.04)).astype(np.float64)
    return ndimage.gaussian_filter(spots, rng.uniform(0.7, 1.3)) * 6 + 0.3 * _soft(rng, 4)


def ripple(rng: np.random.Generator) -> Array:
    u, v = _axes(rng, rng.uniform(4, 8))
    return np.sin(2 * np.pi * np.hypot(u - TILE / 3, v) / rng.uniform(9, 16)) + 0.4 * _white(rng)


def cells(rng: np.random.Generator) -> Array:
    seeds = rng.uniform(0, TILE, (int(rng.integers(500, 1100)), 2))
    places = np.mgrid[0:TILE, 0:TILE].reshape(2, -1).T
    near, far = cKDTree(seeds).query(places, k=2)[0].T
    return np.clip(far - near, 0, 3).reshape(TILE, TILE) + 0.3 * _white(rng)


def plaid(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    bands = [np.tanh(3 * np.sin(2 * np.pi * w / rng.uniform(9, 22))) for w in (u, v)]
    return bands[0] + bands[1] + 0.4 * _white(rng)


def camouflage(rng: np.random.Generator) -> Array:
    return np.tanh(5 * _soft(rng, rng.uniform(3, 7))) + 0.3 * _white(rng)


def scales(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    period = rng.uniform(10, 16)
    row = np.floor(v / (period / 2))
    across = (u + (row % 2) * period / 2) % period - period / 2
    return np.hypot(across, v - row * period / 2) / period * 4 + 0.3 * _white(rng)


def leather(rng: np.random.Generator) -> Array:
    return np.abs(_soft(rng, rng.uniform(1.6, 2.6))) + 0.1 * _white(rng)


def herringbone(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    period = rng.uniform(7, 11)
    zigzag = np.abs((v / (2 * period)) % 1 - 0.5) * 2 * period
    return np.sin(2 * np.pi * (u + zigzag) / period) + 0.4 * _white(rng)


def marble(rng: np.random.Generator) -> Array:
    u, v = _axes(rng, 10)
    return -(np.abs(np.sin(np.pi * (u + 0.3 * v) / rng.uniform(30, 44))) ** 0.5) + 0.1 * _soft(rng, 2)


def hexmesh(rng: np.random.Generator) -> Array:
    u, v = _axes(rng)
    k = 2 * np.pi / rng.uniform(9, 14)
    waves = sum(np.cos(k * (u * np.cos(a) + v * np.sin(a))) for a in (0, np.pi / 3, 2 * np.pi / 3))
    return np.clip(waves, -1.2, 0.8) + 0.2 * _white(rng)


def _photograph(name: str) -> Texture:
    """A photograph that scikit-image ships (brick, grass, gravel: 512 x 512, grey), at 0.6 times its size."""

    def texture(rng: np.random.Generator) -> Array:
        from skimage import data

        picture = np.asarray(getattr(data, name)(), dtype=np.float64)
        return ndimage.zoom(picture, 0.6, order=1)[:TILE, :TILE]

    return texture


_DRAWN: tuple[Texture, ...] = (
    *(grain, cloud, stripes, wood, weave, dots, speckle, ripple, cells, plaid, camouflage, scales),
    *(leather, herringbone, marble, hexmesh),
)
TEXTURES: dict[str, Texture] = {texture.__name__: texture for texture in _DRAWN}
TEXTURES |= {name: _photograph(name) for name in ("grass", "brick", "gravel")}


@lru_cache(maxsize=512)
def tile(texture: str, seed: int) -> Array:
    """The tile of a texture and a seed: mean 0, standard deviation 1, cut off at 2.5 deviations."""
    return np.clip(_unit(TEXTURES[texture](np.random.default_rng(seed))), -2.5, 2.5)
