"""Scenes made of photographed textures, 288 x 288 pixels: what the model `photo` learns from.

A `Kind` is what a product is in a factory: one surface, one part, one assembly, with its own look and its own spread
from picture to picture. `shoot` takes a picture of it, normal or with a defect. Two pictures of a kind differ in what
differs between two good pictures of a product: window, pose, light, noise.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.errors import UserError
from iadr1_lib.world.drawing import Drawing, draw
from iadr1_lib.world.families import Family, dev_families, train_families
from iadr1_lib.world.marks import colour_of
from iadr1_lib.world.outlines import OUTLINES, box, polygon

# Names this way of making pictures: whoever changes a pixel changes it, so that old ones are made anew.
PHOTOGRAPHING = "1"
SIDE = 288
_SCALE = SIDE / 96  # outlines are drawn for pictures of 96 pixels
Y, X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
_CENTRE = (SIDE - 1) / 2
_MIDDLE = 300  # of the repeated texture: half the diagonal of a picture, and as far as windows wander
Pixels = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Kind:
    """One product: `seed` decides its look, `textures` are the files that its surfaces are taken from.

    With a `family` it is one of the mini world's, drawn as there and enlarged.
    """

    name: str
    seed: int
    textures: tuple[Path, ...]
    family: Family | None = None

    @property
    def material(self) -> str:
        """The material of its first texture, as the file is called, or the drawn texture."""
        return self.family.texture if self.family else self.textures[0].stem.split("_")[0]

    @property
    def thing(self) -> str:
        """What it is: the outline of a part, or surface, assembly, scatter."""
        if self.family:
            return self.family.outline or "surface"
        look = _look(self)
        return look.outline if look.style == "part" else look.style


@dataclass(frozen=True)
class Photograph:
    """One picture: `image` uint8 (SIDE, SIDE, 3); `mask` bool (SIDE, SIDE), empty on a normal picture."""

    image: NDArray[np.uint8]
    mask: Mask
    defect_type: str | None
    kind: Kind


@dataclass
class _Canvas:
    """A picture while it is painted: RGB in [0, 1]; signed distance to the part's edge; what lies behind the part."""

    image: Pixels
    edge: Pixels
    behind: Pixels
    elements: list[Pixels] = field(default_factory=list)  # signed distances of an assembly's elements


# ------------------------------------------------------------------------------------------------ kinds


def texture_files(folder: Path) -> dict[str, list[Path]]:
    """Material -> its texture files, both sorted; UserError where the folder has none."""
    files: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).glob("*.webp")):
        files.setdefault(path.stem.split("_")[0], []).append(path)
    if not files:
        raise UserError(f"there are no textures in {folder}: `iadr1 fetch textures` says where they come from")
    return files


def kinds(folder: Path, split: str, count: int, start: int = 0) -> list[Kind]:
    """Kinds number `start` to `start + count` of a split ("pa_sft", "sc_grpo", "dev"); no texture is in two splits.

    Every fourth is of the mini world's families of that split. Materials take turns, so that one with many textures
    does not outweigh the others.
    """
    files = texture_files(folder)
    own = {m: [p for p in paths if _split_of(p) == split] for m, paths in files.items()}
    materials = sorted(m for m, paths in own.items() if paths)
    drawn = _drawn_families(split)
    made = []
    for i in range(start, start + count):
        rng = np.random.default_rng(zlib.crc32(f"{split}/{i}".encode()))
        first = own[materials[i % len(materials)]]
        others = own[str(rng.choice(materials))]
        picked = (first[int(rng.integers(len(first)))], others[int(rng.integers(len(others)))])
        family = drawn[i // 4 % len(drawn)] if i % 4 == 3 else None
        made.append(Kind(f"{split}_{i:04d}", zlib.crc32(f"{split}/{i}/look".encode()), picked, family))
    return made


def _drawn_families(split: str) -> list[Family]:
    if split == "dev":
        return dev_families()
    return train_families(132, start=48, new_kinds=True) if split == "sc_grpo" else train_families(48)


def _split_of(path: Path) -> str:
    """Textures in neighbouring places of a sheet are variants of one: tens of them stay together."""
    material, number = path.stem.rsplit("_", 1)
    share = zlib.crc32(f"{material}/{int(number) // 10}".encode()) % 100
    return "pa_sft" if share < 55 else "sc_grpo" if share < 85 else "dev"


@lru_cache(maxsize=2048)
def _tile(path: Path) -> Image.Image:
    """The texture four times in each direction, so that any window of it can be cut out."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    height, width = (2 * _MIDDLE // side + 1 for side in pixels.shape[:2])
    return Image.fromarray(np.tile(pixels, (height, width, 1))[: 2 * _MIDDLE, : 2 * _MIDDLE])


def _window(rng: np.random.Generator, path: Path, zoom: float, angle: float, at: tuple[float, float]) -> Pixels:
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    start = _MIDDLE + at[0] - (cos + sin) * _CENTRE, _MIDDLE + at[1] - (cos - sin) * _CENTRE
    data = (cos, sin, start[0], -sin, cos, start[1])
    picture = _tile(path).transform((SIDE, SIDE), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float32) / 255


def _soft_noise(rng: np.random.Generator, cells: int) -> Pixels:
    """Smooth noise with standard deviation 1, about `cells` blobs across the picture."""
    grid = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    noise = np.asarray(Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / (noise.std() + 1e-6)


class _Look:
    """What all pictures of a kind have in common, decided by its seed."""

    def __init__(self, kind: Kind) -> None:
        rng = np.random.default_rng(kind.seed)
        self.kind = kind
        self.style = str(rng.choice(["surface", "part", "assembly", "scatter"], p=[0.4, 0.25, 0.25, 0.1]))
        self.grey = rng.random() < 0.35
        self.zoom = tuple(float(z) for z in np.exp(rng.uniform(np.log(0.9), np.log(2.6), 2)))
        self.angle = float(rng.uniform(0, 2 * np.pi))
        self.turns = rng.random() < 0.3  # whether pictures of it lie at any angle
        self.contrast = float(rng.uniform(0.4, 1.1))
        self.aligned = rng.random() < 0.3  # whether all show the same window of the texture
        self.at = tuple(float(v) for v in rng.uniform(-60, 60, 2))
        self.pose = float(rng.choice([0.0, rng.uniform(0, 3), rng.uniform(3, 14)]))  # pixels of shift
        self.tilt = float(rng.choice([0.0, rng.uniform(0, 0.03), rng.uniform(0.03, 0.15)]))
        self.light = float(rng.uniform(0.0, 0.16))
        self.noise = float(rng.choice([0.004, 0.012, 0.03]))
        self.blur = float(rng.choice([0.0, 0.0, 0.6, 1.2]))
        self.tint = rng.uniform(0.75, 1.15, 3).astype(np.float32)
        self.stains = float(rng.choice([0.0, 0.0, 0.03, 0.07]))  # uneven brightness that is normal here
        plain = rng.random() < 0.6
        level = rng.uniform(0.02, 0.15) if rng.random() < 0.5 else rng.uniform(0.75, 0.98)
        self.ground = np.float32(level) if plain else None
        self.outline = str(rng.choice([*OUTLINES, "polygon"]))
        self.stretch = rng.uniform(0.75, 1.05, 2)
        self.elements = [_Element.drawn(rng) for _ in range(int(rng.integers(3, 14)))]
        self.copies = int(rng.integers(8, 26))


@lru_cache(maxsize=1024)
def _look(kind: Kind) -> _Look:
    return _Look(kind)


@dataclass(frozen=True)
class _Element:
    """One piece of an assembly: its shape, size, place and paint."""

    shape: str
    size: float
    at: Pixels
    angle: float
    sides: int
    colour: Pixels
    textured: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _Element:
        return cls(
            shape=str(rng.choice(["disc", "box", "bar", "ring", "polygon"])),
            size=float(np.exp(rng.uniform(np.log(8), np.log(48)))),
            at=rng.uniform(30, SIDE - 30, 2),
            angle=float(rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])),
            sides=int(rng.integers(3, 7)),
            colour=colour_of(rng.random(), rng.uniform(0.05, 0.95), rng.choice([0.0, 0.2, 0.7])).astype(np.float32),
            textured=bool(rng.random() < 0.4),
        )

    def edge(self, x0: float, y0: float, turn: float) -> Pixels:
        """Signed distance to its edge, if its centre is at (x0, y0) and it is turned."""
        angle, dx, dy = self.angle + turn, X - x0, Y - y0
        x, y = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
        shapes: dict[str, Callable[[], Pixels]] = {
            "disc": lambda: np.hypot(x, y) - self.size,
            "ring": lambda: np.abs(np.hypot(x, y) - self.size) - max(2.0, self.size / 4),
            "polygon": lambda: polygon(x, y, self.sides, self.size * 0.8),
            "bar": lambda: box(x, y, self.size, self.size * 0.18, 2.0),
            "box": lambda: box(x, y, self.size, self.size * 0.6, 2.0),
        }
        return shapes[self.shape]().astype(np.float32)


# ------------------------------------------------------------------------------------------------ taking a picture


def _cover(distance: Pixels, softness: float = 1.5) -> Pixels:
    return np.clip(0.5 - distance / softness, 0, 1)


def _mix(image: Pixels, cover: Pixels, colour: Pixels | float) -> Pixels:
    return image + cover[..., None] * (colour - image)


def _surface(look: _Look, rng: np.random.Generator, which: int, angle: float) -> Pixels:
    """A window of one of the kind's textures, with less or more contrast; two windows mixed, against repetition."""
    path, zoom = look.kind.textures[which], look.zoom[which]

    def place() -> tuple[float, float]:
        return look.at if look.aligned else tuple(rng.uniform(-64, 64, 2))  # type: ignore[return-value]

    image = _window(rng, path, zoom, angle, place())
    if not look.aligned and zoom < 2.2:
        weight = 1 / (1 + np.exp(-4 * _soft_noise(rng, 3)))
        image = _mix(image, weight, _window(rng, path, zoom, angle, place()))
    mean = image.mean((0, 1))
    return (mean + look.contrast * (image - mean)) * (1 if which else look.tint)


def _clean(look: _Look, rng: np.random.Generator) -> _Canvas:
    angle = rng.uniform(0, 2 * np.pi) if look.turns else look.angle
    angle += rng.normal() * look.tilt
    image = _surface(look, rng, 0, angle)
    everywhere = np.full((SIDE, SIDE), -SIDE, dtype=np.float32)
    if look.style == "surface":
        return _Canvas(image, everywhere, np.broadcast_to(image.mean((0, 1)) * 0.6, image.shape))
    ground = _surface(look, rng, 1, look.angle) if look.ground is None else np.full_like(image, look.ground)
    shift, turn = rng.normal(0, 1, 2) * look.pose, rng.normal() * look.tilt
    if look.style == "part":
        turn += angle if look.turns else 0.0
        x = ((X - _CENTRE - shift[0]) * np.cos(turn) + (Y - _CENTRE - shift[1]) * np.sin(turn)) / _SCALE
        y = (-(X - _CENTRE - shift[0]) * np.sin(turn) + (Y - _CENTRE - shift[1]) * np.cos(turn)) / _SCALE
        x, y = x / look.stretch[0], y / look.stretch[1]
        edge = polygon(x, y, 5, 36) if look.outline == "polygon" else OUTLINES[look.outline](x, y)
        edge = (edge * _SCALE).astype(np.float32)
        bevel = np.clip(1 + edge / 14, 0, 1) * 0.3
        return _Canvas(_mix(ground, _cover(edge), image * (1 - bevel[..., None])), edge, ground)
    canvas = _Canvas(ground if look.style == "scatter" else image, everywhere, ground)
    canvas.behind = canvas.image
    if look.style == "scatter":
        places = [(look.elements[0], *rng.uniform(0, SIDE, 2), rng.uniform(0, 6.3)) for _ in range(look.copies)]
    else:
        places = [(e, *(e.at + shift + rng.normal(0, 0.3, 2) * look.pose), turn) for e in look.elements]
    paint = _surface(look, rng, 1 if look.style == "assembly" else 0, look.angle)
    for element, x0, y0, turned in places:
        edge = element.edge(x0, y0, turned)
        shaded = (paint if element.textured else element.colour) * (1 - 0.3 * np.clip(1 + edge / 6, 0, 1)[..., None])
        canvas.image = _mix(canvas.image, _cover(edge), shaded)
        canvas.elements.append(edge)
    return canvas


def _camera(look: _Look, rng: np.random.Generator, image: Pixels) -> NDArray[np.uint8]:
    """Uneven light, blur, noise, compression: what differs between two shots of the same thing."""
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, look.light)
    light = 1 + slope * ((X - _CENTRE) * np.cos(angle) + (Y - _CENTRE) * np.sin(angle)) / _CENTRE
    light = light * (1 + rng.normal() * look.light * 0.6)
    if look.stains:
        light = light * (1 + look.stains * _soft_noise(rng, int(rng.integers(2, 6))))
    image = image * light[..., None].astype(np.float32)
    if look.grey:
        image = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    blur = look.blur * rng.uniform(0.7, 1.3)
    noise = rng.standard_normal(image.shape[:2] + ((1,) if look.grey else (3,))).astype(np.float32)
    pixels = (np.clip(image + look.noise * noise, 0, 1) * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur))) if blur > 0.2 else pixels


def shoot(kind: Kind, seed: int, defect_type: str | None = None, severity: float | None = None) -> Photograph:
    """One picture of a kind; with a type of DEFECT_TYPES it has that defect.

    Args:
        severity: 0 hard to see to 1 glaring; drawn when None.
    """
    if kind.family is not None:
        return _enlarged(kind, draw(kind.family, zlib.crc32(f"{kind.seed}/{seed}".encode()), defect_type))
    rng, look = np.random.default_rng([kind.seed, seed]), _look(kind)
    canvas = _clean(look, rng)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    image = canvas.image
    if defect_type is not None:
        image, mask = _visible(rng, canvas, defect_type, severity, look.noise, lambda: _surface(look, rng, 1, 0.0))
    return Photograph(_camera(look, rng, image), mask, defect_type, kind)


def deface(picture: Image.Image, seed: int, defect_type: str) -> tuple[Image.Image, Mask]:
    """A good picture with a defect painted on it, SIDE x SIDE, and its mask: training data from good pictures alone.

    The place may be anywhere: what is part and what is background is not known. What is lacking shows the mean colour
    of the picture's border.
    """
    rng = np.random.default_rng([zlib.crc32(defect_type.encode()), seed])
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    image = np.asarray(small, dtype=np.float32) / 255
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).mean(0)
    everywhere = np.full((SIDE, SIDE), -SIDE, dtype=np.float32)
    canvas = _Canvas(image, everywhere, np.broadcast_to(border, image.shape))
    painted, mask = _visible(rng, canvas, defect_type, None, 0.01, lambda: np.ascontiguousarray(image[::-1, ::-1]))
    return Image.fromarray((np.clip(painted, 0, 1) * 255).round().astype(np.uint8)), mask


def _visible(
    rng: np.random.Generator,
    canvas: _Canvas,
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


def _enlarged(kind: Kind, drawing: Drawing) -> Photograph:
    image = Image.fromarray(drawing.image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    mask = np.asarray(Image.fromarray(drawing.mask).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    return Photograph(np.asarray(image), mask, drawing.defect_type, kind)


# ------------------------------------------------------------------------------------------------ defects


@dataclass(frozen=True)
class _Brush:
    rng: np.random.Generator
    canvas: _Canvas
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


def _place(rng: np.random.Generator, canvas: _Canvas, on_edge: bool) -> tuple[float, float]:
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
    stain = _cover(b.blob(b.radius(7, 45)), b.rng.uniform(3, 14))
    if b.rng.random() < 0.3:  # spatter
        drops = np.full((SIDE, SIDE), 1e3, dtype=np.float32)
        for _ in range(int(b.rng.integers(3, 9))):
            dx, dy = b.rng.normal(0, 18, 2)
            drops = np.minimum(drops, np.hypot(X - b.x - dx, Y - b.y - dy) - b.rng.uniform(2, 7))
        stain = _cover(drops, 2.5)
    if b.rng.random() < 0.35:  # it darkens or lightens what lies below
        factor = b.rng.uniform(0.3, 0.6) if b.rng.random() < 0.7 else b.rng.uniform(1.4, 1.9)
        return b.canvas.image * (1 + b.opacity * stain * (factor - 1))[..., None], stain > 0.4
    return _mix(b.canvas.image, 0.85 * b.opacity * stain, b.colour()), stain > 0.4


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
    image = _mix(b.canvas.image, 0.5 * b.opacity * _cover(body - 2, 6), 0.05)  # its shadow
    paint = b.colour()
    if b.rng.random() < 0.3:
        paint = b.other_surface() * 0.9
    return _mix(image, min(1.0, b.opacity + 0.3) * _cover(body.astype(np.float32)), paint), body < 1


def _scratch(b: _Brush) -> tuple[Pixels, Mask]:
    bright, image = b.rng.random() < 0.55, b.canvas.image
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for _ in range(int(b.rng.choice([1, 1, 1, 2, 4]))):
        line = b.path(b.radius(30, 200), 0.06)
        width = b.rng.uniform(0.4, 1.8)
        image = _mix(image, b.opacity * _cover(line - width), 0.97 if bright else 0.04)
        mask |= line < width + 1.5
    return image, mask


def _missing_part(b: _Brush) -> tuple[Pixels, Mask]:
    image, inside = b.canvas.image, b.canvas.edge < 0
    if b.canvas.elements and b.rng.random() < 0.8:  # an element is not there, or only a piece of it
        whole = [e for e in b.canvas.elements if 150 < (e < 0).sum() < 15000]
        if whole:
            gone = whole[int(b.rng.integers(len(whole)))]
            cover = _cover(gone - 2)
            if b.rng.random() < 0.3:
                cover = cover * (np.median(X[gone < 0]) < X)
            return _mix(image, cover, b.canvas.behind), cover > 0.5
    bite = b.blob(b.radius(10, 38), 0.5)
    if (b.canvas.edge > 0).any():
        return _mix(image, _cover(bite) * _cover(b.canvas.edge), b.canvas.behind), (bite < 0) & inside
    rim = np.abs(bite) - 2
    lit = np.where(X - b.x + Y - b.y > 0, 0.9, 0.08).astype(np.float32)[..., None]
    image = _mix(image, b.opacity * _cover(bite, 3), image.mean((0, 1)) * b.rng.uniform(0.5, 0.9))
    return _mix(image, 0.8 * b.opacity * _cover(rim), lit), bite < 1


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
        image = _mix(image, 0.6 * b.opacity * _cover(pit - 3, 4), b.rng.uniform(0.7, 1.0))  # a worn, light rim
    return _mix(image, (0.5 + 0.5 * b.severity) * _cover(pit, 2.5), b.rng.uniform(0.0, 0.12)), pit < 1.5


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
    width = b.rng.uniform(0.4, 2.2) * (1 + 0.4 * _soft_noise(b.rng, 30))
    image = _mix(b.canvas.image, b.opacity * _cover(distance - width), b.rng.uniform(0.0, 0.15))
    return image, distance < 3


def _abrasion(b: _Brush) -> tuple[Pixels, Mask]:
    worn = _cover(b.blob(b.radius(14, 55)), b.rng.uniform(4, 16))
    blurred = ndimage.gaussian_filter(b.canvas.image, (3, 3, 0))
    angle, pitch = b.rng.uniform(0, np.pi), b.rng.uniform(4, 11)
    streaks = np.sin((X * np.cos(angle) + Y * np.sin(angle)) * 6.28 / pitch + 1.5 * _soft_noise(b.rng, 12))
    dull = blurred.mean(-1, keepdims=True) * b.rng.uniform(0.5, 0.8) + b.rng.uniform(0.1, 0.35)
    return _mix(b.canvas.image, b.opacity * worn, dull + b.rng.uniform(0, 0.15) * streaks[..., None]), worn > 0.4


_PAINTERS: dict[str, Callable[[_Brush], tuple[Pixels, Mask]]] = dict(
    zip(
        DEFECT_TYPES,
        (_contamination, _foreign_object, _scratch, _missing_part, _deformation, _hole, _damage, _abrasion),
        strict=True,
    )
)


def _paint(
    rng: np.random.Generator,
    canvas: _Canvas,
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


# ------------------------------------------------------------------------------------------------ on disk


def write_photographs(root: Path, products: Sequence[Kind], count: int, seed: int, references: int = 1) -> None:
    """Write `count` pictures of the kinds in turn, in MVTec-AD's layout, every second one normal; types in turn.

    Each kind has `references` good pictures in train/good. What is already there with the same arguments is left.
    """
    stamp = json.dumps([[kind.name for kind in products], count, seed, references, PHOTOGRAPHING])
    done = root / "world.json"
    if done.exists() and done.read_text() == stamp:
        return
    shutil.rmtree(root, ignore_errors=True)  # pictures of another making must not mix in
    step = (len(products) + 1) | 1  # odd, so that each kind meets each type in turn
    for i in range(count):
        turn, place = divmod(i // 2, len(products))
        kind, kept = products[place], root / products[place].name
        defect_type = DEFECT_TYPES[(turn * step + place) % len(DEFECT_TYPES)] if i % 2 else None
        photograph = shoot(kind, zlib.crc32(f"{seed}/{i}".encode()), defect_type)
        folder = (defect_type or "good").replace(" ", "_")
        _save(kept / "test" / folder / f"{i:05d}.png", photograph.image)
        if defect_type is not None:
            _save(kept / "ground_truth" / folder / f"{i:05d}_mask.png", photograph.mask)
    for kind in products[: -(-count // 2)]:
        for i in range(references):
            photograph = shoot(kind, zlib.crc32(f"{seed}/reference/{i}".encode()))
            _save(root / kind.name / "train" / "good" / f"{i:03d}.png", photograph.image)
    done.write_text(stamp)


def _save(path: Path, pixels: NDArray[np.uint8] | Mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=0)  # all of one file size: it must not tell the label
