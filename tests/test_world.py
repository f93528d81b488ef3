"""The drawn world: what is drawn, how the splits differ, and how it comes back through the loader."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iadr1_lib import world
from iadr1_lib.answer import DEFECT_TYPES, cell_of_mask
from iadr1_lib.data import check_health, load_mvtec, read_mask
from iadr1_lib.records import Sample
from iadr1_lib.world.outlines import OUTLINES
from iadr1_lib.world.surfaces import TEXTURES

SURFACE, PART = world.train_families(3)[0], world.train_families(4)[3]
COUNT = 36

ALL = {
    "train": world.train_families(96) + world.train_families(132, start=96, new_kinds=True),
    "dev": world.dev_families(),
    "test": [f for families in world.test_families().values() for f in families],
}
DRAWN = {"c02c05db55b4": "969f0f328eccd1f9c2f31e0e7192ee1832957dc08163d9264b7b0040887cd76c"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "dev"
    world.write_world(root, world.dev_families(), COUNT, seed=3)
    return root


@pytest.fixture(scope="module")
def samples(written: Path) -> list[Sample]:
    return sorted(load_mvtec(written), key=lambda s: Path(s.image).name)


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below `root` with its time of writing and its size."""
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def test_whoever_changes_a_pixel_changes_the_name_of_the_drawing() -> None:
    """Every texture, outline, defect and look-alike. The hash was the same with numpy's vector instructions off."""
    digest = hashlib.sha256()
    outlines = [None, *OUTLINES]
    for i, texture in enumerate(TEXTURES):
        family = world.Family(f"f{i}", "none", texture, outlines[i % len(outlines)], 100 + i, (0.0, 0.9))
        for k in range(2):
            look_alike = world.LOOK_ALIKES[(i + k) % len(world.LOOK_ALIKES)]
            drawing = world.draw(family, i, DEFECT_TYPES[(3 * i + 5 * k) % len(DEFECT_TYPES)], look_alike=look_alike)
            for pixels in (drawing.image, drawing.mask, drawing.look_alike_mask):
                digest.update(pixels.tobytes())
    assert digest.hexdigest() == DRAWN[world.DRAWING]


@pytest.mark.parametrize("defect_type", [None, *DEFECT_TYPES])
def test_a_seed_gives_one_picture_and_another_seed_another(defect_type: str | None) -> None:
    first, again, other = (world.draw(PART, seed, defect_type) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert (first.severity, first.look_alike) == (again.severity, again.look_alike)
    assert not np.array_equal(first.image, other.image)


def test_families_of_one_texture_and_outline_still_look_different() -> None:
    one, *_, other = (f for f in ALL["train"] if (f.texture, f.outline) == (SURFACE.texture, SURFACE.outline))
    assert not np.array_equal(world.draw(one, 1).image, world.draw(other, 1).image)


@pytest.mark.parametrize("split", ALL)
def test_every_family_can_be_drawn_normal_and_with_every_defect(split: str) -> None:
    for number, family in enumerate(ALL[split][:40]):
        normal = world.draw(family, number)
        assert normal.image.shape == (world.SIZE, world.SIZE, 3) and normal.image.dtype == np.uint8
        assert normal.defect_type is None and not normal.mask.any() and normal.severity == 0
        defect_type = DEFECT_TYPES[number % len(DEFECT_TYPES)]
        broken = world.draw(family, number, defect_type)
        assert broken.defect_type == defect_type
        assert 0 < broken.mask.mean() < 0.2


@pytest.mark.parametrize("family", [SURFACE, PART], ids=["surface", "part"])
@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_a_defect_changes_the_pixels_in_its_mask_and_more_when_it_is_severe(
    family: world.Family, defect_type: str
) -> None:
    change: dict[float, list[float]] = {0.1: [], 0.5: [], 1.0: []}
    noise = []
    for seed in range(12):
        clean = world.draw(family, seed, look_alike=None).image.astype(float)
        for severity, changes in change.items():
            broken = world.draw(family, seed, defect_type, severity=severity, look_alike=None)
            exposure = np.median(broken.image[~broken.mask]) / np.median(clean[~broken.mask])
            difference = np.abs(broken.image - clean * exposure).mean(-1)
            changes.append(difference[broken.mask].sum())
            noise.append(np.median(difference[~broken.mask]))
    faint, medium, glaring = (float(np.mean(changes)) for changes in change.values())
    assert faint < medium < glaring
    assert np.median(noise) < 6  # of 255: away from the defect only exposure and the camera's noise differ


def test_exposure_severity_and_place_vary() -> None:
    means = [world.draw(SURFACE, seed, look_alike=None).image.mean() for seed in range(24)]
    assert np.std(means) > 0.03 * np.mean(means)
    drawn = [world.draw(SURFACE, seed, "hole", look_alike=None) for seed in range(200)]
    assert min(d.severity for d in drawn) < 0.3 and max(d.severity for d in drawn) > 0.85
    places = Counter(cell_of_mask(d.mask) for d in drawn)
    assert len(places) == 9 and max(places.values()) < 200 * 0.3


def test_half_of_the_normal_pictures_carry_a_look_alike() -> None:
    drawn = [world.draw(SURFACE, seed) for seed in range(240)]
    kinds = Counter(d.look_alike for d in drawn if d.look_alike)
    assert 0.4 < sum(kinds.values()) / len(drawn) < 0.6
    assert set(kinds) == set(world.LOOK_ALIKES)


@pytest.mark.parametrize("look_alike", world.LOOK_ALIKES)
def test_a_look_alike_shows_but_is_no_defect(look_alike: str) -> None:
    changes = []
    for seed in range(6):
        plain = world.draw(SURFACE, seed, look_alike=None)
        drawn = world.draw(SURFACE, seed, look_alike=look_alike)
        assert drawn.look_alike == look_alike and not plain.look_alike_mask.any() and not drawn.mask.any()
        difference = np.abs(drawn.image.astype(float) - plain.image).mean(-1)
        changes.append(np.percentile(difference[drawn.look_alike_mask], 90))
    assert np.mean(changes) > 10


@pytest.mark.parametrize(("one", "other"), combinations(ALL, 2))
def test_splits_share_no_texture_outline_ink_seed_or_name(one: str, other: str) -> None:
    first, second = ALL[one], ALL[other]
    for what in ("texture", "seed", "name", "split"):
        assert not {getattr(f, what) for f in first} & {getattr(f, what) for f in second}, what
    assert {f.outline for f in first} & {f.outline for f in second} <= {None}
    ((low, high),), ((low_2, high_2),) = ({f.ink for f in families} for families in (first, second))
    assert high <= low_2 or high_2 <= low


def test_families_have_unique_names_and_a_start_gives_others() -> None:
    for families in ALL.values():
        assert len({f.name for f in families}) == len({f.seed for f in families}) == len(families)
    assert world.train_families(4, start=4) == world.train_families(8)[4:]


def test_new_kinds_come_beside_the_old_ones() -> None:
    old, new = world.train_families(80), world.train_families(132, start=80, new_kinds=True)
    assert {f.texture for f in old} < {f.texture for f in new}
    assert {f.outline for f in new} - {f.outline for f in old}


def test_there_are_six_benchmarks_of_surfaces_and_parts() -> None:
    benchmarks = world.test_families()
    assert len(benchmarks) == 6
    assert {f.outline is None for families in benchmarks.values() for f in families} == {True, False}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8])
def test_half_are_normal_and_types_come_evenly_to_every_family(count: int) -> None:
    families = world.train_families(count)
    drawn = list(world.drawings(families, 2 * 8 * count, seed=1))
    pairs = Counter((d.family.name, d.defect_type) for d in drawn if d.defect_type)
    assert len(pairs) == 8 * count and set(pairs.values()) == {1}
    assert set(Counter(d.family.name for d in drawn if d.defect_type is None).values()) == {8}


def test_one_more_seed_draws_all_pictures_anew() -> None:
    one, other = (list(world.drawings([SURFACE], 6, seed)) for seed in (1, 2))
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))


def test_a_written_world_comes_back_through_the_loader(written: Path, samples: list[Sample]) -> None:
    expected = list(world.drawings(world.dev_families(), COUNT, seed=3))
    for sample, drawing in zip(samples, expected, strict=True):
        label = "yes" if drawing.defect_type else "no"
        assert (sample.category, sample.type, sample.label) == (drawing.family.name, drawing.defect_type, label)
        assert np.array_equal(np.asarray(Image.open(sample.image)), drawing.image)
        if drawing.defect_type is None:
            assert sample.mask is None and sample.location is None
        else:
            assert sample.mask is not None and np.array_equal(read_mask(sample.mask), drawing.mask)
            assert sample.location == cell_of_mask(drawing.mask)
        folder = written / sample.category
        note = json.loads((folder / "notes.json").read_text())[Path(sample.image).relative_to(folder).as_posix()]
        assert note["look_alike"] == drawing.look_alike
        assert note["severity"] == pytest.approx(drawing.severity, abs=1e-3)
        if drawing.look_alike_mask.any():
            assert note["look_alike_cell"] == cell_of_mask(drawing.look_alike_mask)
    assert check_health(samples) == []
    assert len({Path(s.image).stat().st_size for s in samples}) == 1  # a file's size does not tell the label


def test_normal_pictures_can_be_filed_as_training_pictures(tmp_path: Path) -> None:
    world.write_world(tmp_path / "w", [SURFACE], 8, seed=0, split="train")
    assert {(s.split, s.label) for s in load_mvtec(tmp_path / "w")} == {("train", "no"), ("test", "yes")}


def test_an_unchanged_world_is_left_alone_and_a_smaller_one_leaves_no_old_pictures(tmp_path: Path) -> None:
    root = tmp_path / "w"
    world.write_world(root, [SURFACE, PART], 20, seed=0)
    before = state(root)
    world.write_world(root, [SURFACE, PART], 20, seed=0)
    assert state(root) == before
    world.write_world(root, [SURFACE], 6, seed=0)
    assert {p.name for p in root.iterdir()} == {SURFACE.name, "world.json"}
    assert len(list(root.rglob("*.png"))) == 6 + 3


@pytest.mark.parametrize("left", [None, "", '{"families": ['], ids=["missing", "empty", "cut off"])
def test_a_world_whose_drawing_was_cut_short_is_drawn_again(tmp_path: Path, left: str | None) -> None:
    root = tmp_path / "w"
    world.write_world(root, [SURFACE], 4, seed=0)
    whole = set(state(root))
    next(root.rglob("*.png")).unlink()
    (root / "world.json").unlink()
    if left is not None:
        (root / "world.json").write_text(left)
    world.write_world(root, [SURFACE], 4, seed=0)
    assert set(state(root)) == whole
