"""Scenes made of photographed textures, 288 x 288 pixels: what the model `photo` learns from.

A `Kind` is what a product is in a factory: one surface, one part, one assembly, with its own look and its own spread
from picture to picture. `shoot` takes a picture of it, normal or with a defect. Two pictures of a kind differ in what
differs between two good pictures of a product: window, pose, light, noise.
"""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.errors import UserError
from iadr1_lib.world.drawing import Drawing, draw, save_picture
from iadr1_lib.world.families import Family, dev_families, train_families
from iadr1_lib.world.marks import colour_of
from iadr1_lib.world.outlines import OUTLINES, box, polygon
from iadr1_lib.world.photo_marks import SIDE, Canvas, Mask, Pixels, X, Y, cover_of, mix, paint_defect, soft_noise

# Names this way of making pictures: whoever changes a pixel changes it, so that old ones are made anew.
PHOTOGRAPHING = "2"
_SCALE = SIDE / 96  # outlines are drawn for pictures of 96 pixels
_CENTRE = (SIDE - 1) / 2
_SMALLEST_ZOOM = 0.9
_MIDDLE = 300  # of the repeated texture: half the diagonal of a picture at that zoom, and as far as windows wander


@dataclass(frozen=True)
class Kind:
    """One product: `seed` decides its look, `textures` are the files that its surfaces are taken from.

    The first is its surface's, the second that of what lies behind; `pieces` are variants of the first, of which other
    pieces of the product may be made. With a `family` it is one of the mini world's, drawn as there and enlarged.
    """

    name: str
    seed: int
    textures: tuple[Path, ...]
    pieces: tuple[Path, ...] = ()
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
        variants = tuple(path for path in first if _sheet(path) == _sheet(picked[0]))
        family = drawn[i // 4 % len(drawn)] if i % 4 == 3 else None
        made.append(Kind(f"{split}_{i:04d}", zlib.crc32(f"{split}/{i}/look".encode()), picked, variants, family))
    return made


def _drawn_families(split: str) -> list[Family]:
    if split == "dev":
        return dev_families()
    return train_families(132, start=48, new_kinds=True) if split == "sc_grpo" else train_families(48)


def _sheet(path: Path) -> str:
    """Textures in neighbouring places of a sheet are variants of one: tens of them stay together."""
    material, number = path.stem.rsplit("_", 1)
    return f"{material}/{int(number) // 10}"


def _split_of(path: Path) -> str:
    share = zlib.crc32(_sheet(path).encode()) % 100
    return "pa_sft" if share < 55 else "sc_grpo" if share < 85 else "dev"


@lru_cache(maxsize=2048)
def _tile(path: Path) -> Image.Image:
    """The texture repeated, so that any window of it can be cut out."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    height, width = (2 * _MIDDLE // side + 1 for side in pixels.shape[:2])
    return Image.fromarray(np.tile(pixels, (height, width, 1))[: 2 * _MIDDLE, : 2 * _MIDDLE])


def _window(path: Path, zoom: float, angle: float, at: tuple[float, float]) -> Pixels:
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    start = _MIDDLE + at[0] - (cos + sin) * _CENTRE, _MIDDLE + at[1] - (cos - sin) * _CENTRE
    data = (cos, sin, start[0], -sin, cos, start[1])
    picture = _tile(path).transform((SIDE, SIDE), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float32) / 255


class _Look:
    """What all pictures of a kind have in common, decided by its seed."""

    def __init__(self, kind: Kind) -> None:
        rng = np.random.default_rng(kind.seed)
        self.kind = kind
        self.style = str(rng.choice(["surface", "part", "assembly", "scatter"], p=[0.4, 0.25, 0.25, 0.1]))
        self.grey = rng.random() < 0.35
        self.zoom = tuple(float(z) for z in np.exp(rng.uniform(np.log(_SMALLEST_ZOOM), np.log(2.6), 2)))
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
        # how unlike two good pictures are: 0 not at all, 1 well seen
        self.spread = float(rng.choice([0.0, rng.uniform(0, 0.5), rng.uniform(0.5, 1.2)]))
        self.other_pieces = rng.random() < 0.35 and not self.aligned
        self.compressed = rng.random() < 0.5


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


@dataclass(frozen=True)
class _Piece:
    """What is particular to the piece that one picture shows: its texture, how large and strong it is, and its hue."""

    texture: Path
    zoom: float
    contrast: float
    tint: Pixels

    @classmethod
    def drawn(cls, look: _Look, rng: np.random.Generator) -> _Piece:
        textures = look.kind.pieces if look.other_pieces and look.kind.pieces else look.kind.textures[:1]
        shade = 0.1 * rng.normal() + 0.04 * rng.standard_normal(3)
        return cls(
            texture=textures[int(rng.integers(len(textures)))],
            zoom=max(_SMALLEST_ZOOM, look.zoom[0] * float(np.exp(0.1 * look.spread * rng.normal()))),
            contrast=look.contrast * float(np.exp(0.3 * look.spread * rng.normal())),
            tint=look.tint * np.exp(look.spread * shade).astype(np.float32),
        )


def _surface(look: _Look, rng: np.random.Generator, angle: float, piece: _Piece | None = None) -> Pixels:
    """A window of the piece's texture, or of what lies behind; two windows mixed, against repetition."""
    path, zoom = (piece.texture, piece.zoom) if piece else (look.kind.textures[1], look.zoom[1])

    def place() -> tuple[float, float]:
        return look.at if look.aligned else tuple(rng.uniform(-64, 64, 2))  # type: ignore[return-value]

    image = _window(path, zoom, angle, place())
    if not look.aligned and zoom < 2.2:
        weight = 1 / (1 + np.exp(-4 * soft_noise(rng, 3)))
        image = mix(image, weight, _window(path, zoom, angle, place()))
    mean = image.mean((0, 1))
    if piece is None:
        return mean + look.contrast * (image - mean)
    return (mean + piece.contrast * (image - mean)) * piece.tint


def _clean(look: _Look, rng: np.random.Generator) -> Canvas:
    angle = rng.uniform(0, 2 * np.pi) if look.turns else look.angle
    angle += rng.normal() * look.tilt
    piece = _Piece.drawn(look, rng)
    image = _surface(look, rng, angle, piece)
    everywhere = np.full((SIDE, SIDE), -SIDE, dtype=np.float32)
    if look.style == "surface":
        return Canvas(image, everywhere, np.broadcast_to(image.mean((0, 1)) * 0.6, image.shape))
    ground = _surface(look, rng, look.angle) if look.ground is None else np.full_like(image, look.ground)
    shift, turn = rng.normal(0, 1, 2) * look.pose, rng.normal() * look.tilt
    if look.style == "part":
        turn += angle if look.turns else 0.0
        x = ((X - _CENTRE - shift[0]) * np.cos(turn) + (Y - _CENTRE - shift[1]) * np.sin(turn)) / _SCALE
        y = (-(X - _CENTRE - shift[0]) * np.sin(turn) + (Y - _CENTRE - shift[1]) * np.cos(turn)) / _SCALE
        x, y = x / look.stretch[0], y / look.stretch[1]
        edge = polygon(x, y, 5, 36) if look.outline == "polygon" else OUTLINES[look.outline](x, y)
        edge = (edge * _SCALE).astype(np.float32)
        bevel = np.clip(1 + edge / 14, 0, 1) * 0.3
        return Canvas(mix(ground, cover_of(edge), image * (1 - bevel[..., None])), edge, ground)
    canvas = Canvas(ground if look.style == "scatter" else image, everywhere, ground)
    canvas.behind = canvas.image
    if look.style == "scatter":
        places = [(look.elements[0], *rng.uniform(0, SIDE, 2), rng.uniform(0, 6.3)) for _ in range(look.copies)]
    else:
        places = [(e, *(e.at + shift + rng.normal(0, 0.3, 2) * look.pose), turn) for e in look.elements]
    paint = _surface(look, rng, look.angle, None if look.style == "assembly" else piece)
    for element, x0, y0, turned in places:
        edge = element.edge(x0, y0, turned)
        shaded = (paint if element.textured else element.colour) * (1 - 0.3 * np.clip(1 + edge / 6, 0, 1)[..., None])
        canvas.image = mix(canvas.image, cover_of(edge), shaded)
        canvas.elements.append(edge)
    return canvas


def _camera(look: _Look, rng: np.random.Generator, image: Pixels) -> NDArray[np.uint8]:
    """Uneven light, blur, noise, compression: what differs between two shots of the same thing."""
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, look.light)
    light = 1 + slope * ((X - _CENTRE) * np.cos(angle) + (Y - _CENTRE) * np.sin(angle)) / _CENTRE
    light = light * (1 + rng.normal() * look.light * 0.6)
    if look.stains:
        light = light * (1 + look.stains * soft_noise(rng, int(rng.integers(2, 6))))
    image = image * light[..., None].astype(np.float32)
    if look.grey:
        image = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    blur = look.blur * rng.uniform(0.7, 1.3) + look.spread * rng.uniform(0, 1.2)
    noise = rng.standard_normal(image.shape[:2] + ((1,) if look.grey else (3,))).astype(np.float32)
    noise *= look.noise * np.exp(0.5 * look.spread * rng.normal())
    pixels = (np.clip(image + noise, 0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture = picture.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.2 else picture
    if look.compressed:
        stored = io.BytesIO()
        picture.save(stored, "JPEG", quality=int(rng.integers(40, 95)))
        picture = Image.open(stored)
    return np.asarray(picture)


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
        image, mask = paint_defect(rng, canvas, defect_type, severity, look.noise, lambda: _surface(look, rng, 0.0))
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
    canvas = Canvas(image, everywhere, np.broadcast_to(border, image.shape))
    painted, mask = paint_defect(rng, canvas, defect_type, None, 0.01, lambda: np.ascontiguousarray(image[::-1, ::-1]))
    return Image.fromarray((np.clip(painted, 0, 1) * 255).round().astype(np.uint8)), mask


def _enlarged(kind: Kind, drawing: Drawing) -> Photograph:
    image = Image.fromarray(drawing.image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    mask = np.asarray(Image.fromarray(drawing.mask).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    return Photograph(np.asarray(image), mask, drawing.defect_type, kind)


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
        save_picture(kept / "test" / folder / f"{i:05d}.png", photograph.image, compress_level=0)
        if defect_type is not None:
            save_picture(kept / "ground_truth" / folder / f"{i:05d}_mask.png", photograph.mask)
    for kind in products[: -(-count // 2)]:
        for i in range(references):
            photograph = shoot(kind, zlib.crc32(f"{seed}/reference/{i}".encode()))
            save_picture(root / kind.name / "train" / "good" / f"{i:03d}.png", photograph.image, compress_level=0)
    done.write_text(stamp)
