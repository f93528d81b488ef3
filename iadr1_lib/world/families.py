"""Families: what a category ("screw", "carpet") is in MVTec-AD, one surface or part with its own look.

Families of the splits train, dev and test differ in texture, outline and hue of the defects, so that test shows things
never seen in training. Choices are made on dev; test is opened for final numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass

_INK_TRAIN, _INK_DEV, _INK_TEST = (0.0, 0.45), (0.45, 0.6), (0.6, 0.95)

TRAIN_TEXTURES = ("grain", "cloud", "stripes", "wood", "weave", "dots", "speckle", "ripple")
TRAIN_OUTLINES = (None, "disc", None, "plate", "capsule", None, "triangle", "cross", None, "ellipse", "frame")
# The kinds of SC-GRPO: more than PA-SFT has records for, as where a factory opens lines and only labels their output.
NEW_TEXTURES = (*TRAIN_TEXTURES, "cells", "plaid", "camouflage", "scales")
NEW_OUTLINES = (None, "frame", "disc", None, "horseshoe", "triangle", None, "clover", "plate", None, "link")

# Benchmark -> texture and outline of each of its families.
BENCHMARKS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "mini-washers": (("hexmesh", "washer"), ("marble", "washer")),
    "mini-gears": (("hexmesh", "gear"), ("marble", "gear")),
    "mini-bottles": (("hexmesh", "bottle"), ("marble", "bottle")),
    "mini-mesh": (("hexmesh", None), ("hexmesh", None)),
    "mini-marble": (("marble", None), ("marble", None)),
    "mini-masonry": (("brick", None), ("gravel", None)),
}


@dataclass(frozen=True)
class Family:
    """One surface (without an outline) or part.

    Attributes:
        texture: a name of `surfaces.TEXTURES`.
        outline: a name of `outlines.OUTLINES`, None for a surface.
        seed: decides the texture's tile and the colours.
        ink: range of the hue of its defects, 0 to 1.
    """

    name: str
    split: str
    texture: str
    outline: str | None
    seed: int
    ink: tuple[float, float]


def train_families(count: int, start: int = 0, *, new_kinds: bool = False) -> list[Family]:
    """`count` families for Expert-AD, from number `start` on, so that PA-SFT and SC-GRPO may use different ones.

    `new_kinds` takes NEW_TEXTURES and NEW_OUTLINES, which hold some that the others do not have.
    """
    textures, outlines = (NEW_TEXTURES, NEW_OUTLINES) if new_kinds else (TRAIN_TEXTURES, TRAIN_OUTLINES)
    kinds = [(i, textures[i % len(textures)], outlines[(i // 2) % len(outlines)]) for i in range(start, start + count)]
    return [Family(f"train_{i:03d}", "train", t, o, seed=1000 + i, ink=_INK_TRAIN) for i, t, o in kinds]


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
