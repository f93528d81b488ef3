"""One picture of a family, many of them, and a world of them on disk."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iadr1_lib.answer import DEFECT_TYPES, cell_of_mask
from iadr1_lib.world import marks
from iadr1_lib.world.families import Family
from iadr1_lib.world.marks import SIZE, Array, Brush, Canvas, Mask, X, Y, blend, colour_of, opacity
from iadr1_lib.world.outlines import OUTLINES
from iadr1_lib.world.surfaces import TILE, tile

# Names this way of drawing, and stands in world.json: whoever changes a pixel changes it, so that old worlds are drawn
# anew. A test compares drawings with recorded ones.
DRAWING = "c02c05db55b4"
MARGIN = 8  # pixels at a picture's edge where no mark has its place
_CENTRE = (SIZE - 1) / 2


@dataclass(frozen=True)
class Drawing:
    """One picture: `image` uint8 SIZE x SIZE x 3; `mask` bool SIZE x SIZE, empty on a normal picture."""

    image: NDArray[np.uint8]
    mask: Mask
    defect_type: str | None
    severity: float
    look_alike: str | None
    look_alike_mask: Mask
    family: Family


def colours_of(family: Family) -> tuple[Array, Array, float]:
    """The family's RGB colour of part or surface, its RGB background, and the contrast of its texture."""
    rng = np.random.default_rng(family.seed + 1)
    colour = colour_of(rng.random(), rng.uniform(0.45, 0.8), rng.uniform(0.05, 0.45))
    dark = rng.random() < 0.5
    background = colour_of(rng.random(), rng.uniform(0.08, 0.2) if dark else rng.uniform(0.88, 0.98), 0.15)
    return colour, background, rng.uniform(0.03, 0.065)


def clean_canvas(rng: np.random.Generator, family: Family) -> Canvas:
    """The clean picture: a random window of the texture, cut out by the part's outline, lit from one side."""
    colour, ground, contrast = colours_of(family)
    top, left = rng.integers(0, TILE - SIZE, 2)
    window = tile(family.texture, family.seed)[top : top + SIZE, left : left + SIZE]
    window = window[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
    image = colour * (1 + contrast * 1.6 * window[..., None])
    background = np.broadcast_to(ground, image.shape) * (1 + 0.03 * window[::-1, ::-1, None])
    edge = np.full((SIZE, SIZE), -SIZE, dtype=np.float64)
    if family.outline is not None:
        turn, scale = rng.uniform(-0.2, 0.2), rng.uniform(0.92, 1.02)
        x, y = (X - _CENTRE - rng.uniform(-3, 3)) / scale, (Y - _CENTRE - rng.uniform(-3, 3)) / scale
        edge = OUTLINES[family.outline](x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn))
        bevel = np.clip(1 + edge / 5, 0, 1) * 0.25
        image = blend(background, opacity(edge), image * (1 - bevel[..., None]))
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.15)
    light = 1 + slope * ((X - _CENTRE) * np.cos(angle) + (Y - _CENTRE) * np.sin(angle)) / _CENTRE
    return Canvas(image * light[..., None], edge < -2, edge, background * light[..., None], family)


def random_place(rng: np.random.Generator, canvas: Canvas, on_edge: bool = False) -> tuple[float, float]:
    """A place (x, y) on the part; cells of the 3x3 grid come up about equally often, as far as the part fills them."""
    allowed = np.zeros((SIZE, SIZE), dtype=bool)
    inner = slice(MARGIN, SIZE - MARGIN)
    allowed[inner, inner] = ((np.abs(canvas.edge + 2) < 2) if on_edge else canvas.edge < -7)[inner, inner]
    third = SIZE // 3
    cells = [(r, c) for r in range(3) for c in range(3) if allowed[r * third :, c * third :][:third, :third].sum() > 20]
    r, c = cells[int(rng.integers(len(cells)))]
    rows, columns = np.nonzero(allowed[r * third :, c * third :][:third, :third])
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
    canvas = clean_canvas(rng, family)
    severity = float(rng.uniform(0.15, 1.0)) if severity is None else severity
    if look_alike == "random":
        share = 0.25 if defect_type else 0.5
        look_alike = str(rng.choice(marks.LOOK_ALIKES)) if rng.random() < share else None
    mask = look_alike_mask = np.zeros((SIZE, SIZE), dtype=bool)
    if look_alike is not None:
        brush = Brush(rng, canvas, *random_place(rng, canvas), rng.uniform(0.3, 1))
        image, look_alike_mask = marks.LOOK_ALIKE_PAINTERS[look_alike](brush)
        canvas = replace(canvas, image=image)
    image = canvas.image
    if defect_type is not None:
        on_edge = defect_type == "missing parts" and family.outline is not None
        image, mask = marks.DEFECTS[defect_type](Brush(rng, canvas, *random_place(rng, canvas, on_edge), severity))
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


def write_world(root: Path, families: list[Family], count: int, seed: int, *, split: str = "test") -> None:
    """Write `count` pictures under `root` in MVTec-AD's layout, one category folder per family.

    `split` names the folder of the normal pictures ("train" or "test"); defective ones always lie in test/<type>, as in
    MVTec-AD. `<family>/notes.json` keeps what a mask does not tell: severity, texture, and the look-alike with its
    cell. A world that is already there with the same arguments is left alone.
    """
    names = [f.name for f in families]
    stamp = json.dumps({"families": names, "count": count, "seed": seed, "split": split, "drawn_by": DRAWING})
    done = root / "world.json"
    if done.exists() and done.read_text() == stamp:
        return
    shutil.rmtree(root, ignore_errors=True)  # pictures of another drawing must not mix in
    notes: dict[str, dict[str, dict[str, object]]] = {}
    for i, drawing in enumerate(drawings(families, count, seed)):
        kind = (drawing.defect_type or "good").replace(" ", "_")
        category = root / drawing.family.name
        place = f"{split if drawing.defect_type is None else 'test'}/{kind}/{i:05d}.png"
        save_picture(category / place, drawing.image, compress_level=0)
        if drawing.defect_type is not None:
            save_picture(category / "ground_truth" / kind / f"{i:05d}_mask.png", drawing.mask)
        note: dict[str, object] = {"severity": round(drawing.severity, 3), "look_alike": drawing.look_alike}
        note["surface"] = drawing.family.texture
        if drawing.look_alike_mask.any():
            note["look_alike_cell"] = cell_of_mask(drawing.look_alike_mask)
        notes.setdefault(drawing.family.name, {})[place] = note
    for name, lines in notes.items():
        (root / name / "notes.json").write_text(json.dumps(lines, indent=0, sort_keys=True))
    done.write_text(stamp)


def write_references(root: Path, families: Sequence[Family], count: int, seed: int = 0) -> None:
    """Write `count` normal pictures of each family as <family>/train/good/000.png; what is there is drawn again.

    Their seeds are their own, so that none of them is in a world of `write_world`.
    """
    for family in families:
        for i in range(count):
            drawing = draw(family, zlib.crc32(f"reference/{seed}/{i}".encode()))
            save_picture(root / family.name / "train" / "good" / f"{i:03d}.png", drawing.image, compress_level=0)


def save_picture(path: Path, pixels: NDArray[np.uint8] | Mask, compress_level: int = 6) -> None:
    """Write a picture; at level 0 all of one size get files of one size, so that it does not tell the label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=compress_level)
