"""The mini world: what is drawn, how the splits differ, and how it comes back through the loader."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iadr1_lib.answer import DEFECT_TYPES, cell_of_mask
from iadr1_lib.data import check_health, load_mvtec, read_mask
from iadr1_lib.records import Sample
from iadr1_lib.world import synthetic

SURFACE, PART = synthetic.train_families(3)[0], synthetic.train_families(4)[3]
COUNT = 36

ALL = {
    "train": synthetic.train_families(96) + synthetic.train_families(132, start=96, new_kinds=True),
    "dev": synthetic.dev_families(),
    "test": [f for families in synthetic.test_families().values() for f in families],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "dev"
    synthetic.write_world(root, synthetic.dev_families(), COUNT, seed=3)
    return root


@pytest.fixture(scope="module")
def samples(world: Path) -> list[Sample]:
    return sorted(load_mvtec(world), key=lambda s: Path(s.image).name)


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below `root` with its time of writing and its size."""
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


# ---------------------------------------------------------------------------------------------- one picture


def test_the_examples_are_a_surface_and_a_part() -> None:
    assert SURFACE.outline is None
    assert PART.outline is not None


@pytest.mark.parametrize("defect_type", [None, *DEFECT_TYPES])
def test_a_seed_gives_one_picture_and_another_seed_another(defect_type: str | None) -> None:
    first, again, other = (synthetic.draw(PART, seed, defect_type) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert (first.severity, first.look_alike) == (again.severity, again.look_alike)
    assert not np.array_equal(first.image, other.image)


def test_families_of_one_texture_and_outline_still_look_different() -> None:
    one, *_, other = (f for f in ALL["train"] if (f.texture, f.outline) == (SURFACE.texture, SURFACE.outline))
    assert not np.array_equal(synthetic.draw(one, 1).image, synthetic.draw(other, 1).image)


@pytest.mark.parametrize("split", ALL)
def test_every_family_can_be_drawn_normal_and_with_every_defect(split: str) -> None:
    for number, family in enumerate(ALL[split][:40]):
        normal = synthetic.draw(family, number)
        assert normal.image.shape == (synthetic.SIZE, synthetic.SIZE, 3)
        assert normal.image.dtype == np.uint8
        assert normal.defect_type is None
        assert not normal.mask.any()
        defect_type = DEFECT_TYPES[number % len(DEFECT_TYPES)]
        broken = synthetic.draw(family, number, defect_type)
        assert broken.defect_type == defect_type
        assert 0 < broken.mask.mean() < 0.2
        assert cell_of_mask(broken.mask)


@pytest.mark.parametrize("family", [SURFACE, PART], ids=["surface", "part"])
@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_a_defect_changes_the_pixels_in_its_mask_and_more_when_it_is_severe(
    family: synthetic.Family, defect_type: str
) -> None:
    change: dict[float, list[float]] = {0.1: [], 0.5: [], 1.0: []}
    noise = []
    for seed in range(12):
        clean = synthetic.draw(family, seed, look_alike=None).image.astype(float)
        for severity, changes in change.items():
            broken = synthetic.draw(family, seed, defect_type, severity=severity, look_alike=None)
            assert broken.mask.any()
            exposure = np.median(broken.image[~broken.mask]) / np.median(clean[~broken.mask])
            difference = np.abs(broken.image - clean * exposure).mean(-1)
            changes.append(difference[broken.mask].sum())
            noise.append(np.median(difference[~broken.mask]))
    faint, medium, glaring = (float(np.mean(changes)) for changes in change.values())
    assert faint < medium < glaring
    assert np.median(noise) < 6  # of 255: away from the defect only exposure and the camera's noise differ


def test_normal_pictures_of_one_family_differ_in_exposure() -> None:
    means = [synthetic.draw(SURFACE, seed, look_alike=None).image.mean() for seed in range(24)]
    assert np.std(means) > 0.03 * np.mean(means)


def test_a_defect_stands_in_all_cells_of_the_grid() -> None:
    places = Counter(cell_of_mask(synthetic.draw(SURFACE, seed, "hole", look_alike=None).mask) for seed in range(200))
    assert len(places) == 9
    assert max(places.values()) < 200 * 0.3


def test_severity_spreads_from_faint_to_glaring() -> None:
    severities = [synthetic.draw(SURFACE, seed, "scratch").severity for seed in range(60)]
    assert min(severities) < 0.3
    assert max(severities) > 0.85
    assert synthetic.draw(SURFACE, 0).severity == 0


# ---------------------------------------------------------------------------------------------- look-alikes


def test_half_of_the_normal_pictures_carry_a_look_alike() -> None:
    drawn = [synthetic.draw(SURFACE, seed) for seed in range(240)]
    kinds = Counter(d.look_alike for d in drawn if d.look_alike)
    assert 0.4 < sum(kinds.values()) / len(drawn) < 0.6
    assert set(kinds) == set(synthetic.LOOK_ALIKES)


@pytest.mark.parametrize("look_alike", synthetic.LOOK_ALIKES)
def test_a_look_alike_shows_but_is_no_defect(look_alike: str) -> None:
    changes = []
    for seed in range(6):
        plain = synthetic.draw(SURFACE, seed, look_alike=None)
        drawn = synthetic.draw(SURFACE, seed, look_alike=look_alike)
        assert not plain.look_alike_mask.any()
        assert not drawn.mask.any()
        assert drawn.look_alike == look_alike
        difference = np.abs(drawn.image.astype(float) - plain.image).mean(-1)
        changes.append(np.percentile(difference[drawn.look_alike_mask], 90))
    assert np.mean(changes) > 10


# ---------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(("one", "other"), combinations(ALL, 2))
def test_splits_share_no_texture_outline_ink_seed_or_name(one: str, other: str) -> None:
    first, second = ALL[one], ALL[other]
    for what in ("texture", "seed", "name", "split"):
        assert not {getattr(f, what) for f in first} & {getattr(f, what) for f in second}, what
    assert {f.outline for f in first} & {f.outline for f in second} <= {None}
    (low, high), (low_2, high_2) = {f.ink for f in first}.pop(), {f.ink for f in second}.pop()
    assert high <= low_2 or high_2 <= low


def test_each_split_has_one_ink_range_and_unique_names() -> None:
    for families in ALL.values():
        assert len({f.ink for f in families}) == 1
        assert len({f.name for f in families}) == len({f.seed for f in families}) == len(families)


def test_training_families_numbered_from_a_start_are_others() -> None:
    assert synthetic.train_families(4, start=4) == synthetic.train_families(8)[4:]


def test_new_kinds_come_beside_the_old_ones() -> None:
    old, new = synthetic.train_families(80), synthetic.train_families(132, start=80, new_kinds=True)
    assert {f.texture for f in old} < {f.texture for f in new}
    assert {f.outline for f in new} - {f.outline for f in old}


def test_there_are_six_benchmarks_of_surfaces_and_parts() -> None:
    benchmarks = synthetic.test_families()
    assert len(benchmarks) == 6
    assert {f.outline is None for families in benchmarks.values() for f in families} == {True, False}


# ---------------------------------------------------------------------------------------------- many pictures


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8])
def test_half_are_normal_and_types_come_evenly_to_every_family(count: int) -> None:
    families = synthetic.train_families(count)
    drawn = list(synthetic.drawings(families, 2 * 8 * count, seed=1))
    assert sum(d.defect_type is None for d in drawn) == len(drawn) / 2
    pairs = Counter((d.family.name, d.defect_type) for d in drawn if d.defect_type)
    assert len(pairs) == 8 * count
    assert set(pairs.values()) == {1}
    assert set(Counter(d.family.name for d in drawn).values()) == {16}


def test_one_more_seed_draws_all_pictures_anew() -> None:
    one, other = (list(synthetic.drawings([SURFACE], 6, seed)) for seed in (1, 2))
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------------------------------- to disk


def test_a_written_world_comes_back_through_the_loader(samples: list[Sample]) -> None:
    expected = list(synthetic.drawings(synthetic.dev_families(), COUNT, seed=3))
    assert len(samples) == COUNT
    for sample, drawing in zip(samples, expected, strict=True):
        assert sample.category == drawing.family.name
        assert sample.type == drawing.defect_type
        assert sample.label == ("yes" if drawing.defect_type else "no")
        assert np.array_equal(np.asarray(Image.open(sample.image)), drawing.image)
        if drawing.defect_type is None:
            assert sample.mask is None and sample.location is None
        else:
            assert sample.mask is not None
            assert np.array_equal(read_mask(sample.mask), drawing.mask)
            assert sample.location == cell_of_mask(drawing.mask)
    assert check_health(samples) == []


def test_the_label_cannot_be_read_from_a_file_s_size(samples: list[Sample]) -> None:
    assert len({Path(s.image).stat().st_size for s in samples}) == 1


def test_notes_tell_of_every_picture_what_no_mask_tells(world: Path, samples: list[Sample]) -> None:
    expected = list(synthetic.drawings(synthetic.dev_families(), COUNT, seed=3))
    for sample, drawing in zip(samples, expected, strict=True):
        folder = world / sample.category
        note = json.loads((folder / "notes.json").read_text())[Path(sample.image).relative_to(folder).as_posix()]
        assert note["look_alike"] == drawing.look_alike
        assert note["severity"] == pytest.approx(drawing.severity, abs=1e-3)
        if drawing.look_alike_mask.any():
            assert note["look_alike_cell"] == cell_of_mask(drawing.look_alike_mask)


def test_normal_pictures_can_be_filed_as_training_pictures(tmp_path: Path) -> None:
    synthetic.write_world(tmp_path / "w", [SURFACE], 8, seed=0, split="train")
    assert {(s.split, s.label) for s in load_mvtec(tmp_path / "w")} == {("train", "no"), ("test", "yes")}


def test_an_unchanged_world_is_left_alone_and_a_smaller_one_leaves_no_old_pictures(tmp_path: Path) -> None:
    root = tmp_path / "w"
    synthetic.write_world(root, [SURFACE, PART], 20, seed=0)
    before = state(root)
    synthetic.write_world(root, [SURFACE, PART], 20, seed=0)
    assert state(root) == before
    synthetic.write_world(root, [SURFACE], 6, seed=0)
    assert len(load_mvtec(root)) == 6
    assert {p.name for p in root.iterdir()} == {SURFACE.name, "world.json"}
    assert len(list(root.rglob("*.png"))) == 6 + 3


@pytest.mark.parametrize("left", [None, "", '{"families": ['], ids=["missing", "empty", "cut off"])
def test_a_world_whose_drawing_was_cut_short_is_drawn_again(tmp_path: Path, left: str | None) -> None:
    root = tmp_path / "w"
    synthetic.write_world(root, [SURFACE], 4, seed=0)
    whole = set(state(root))
    next(root.rglob("*.png")).unlink()
    (root / "world.json").unlink()
    if left is not None:
        (root / "world.json").write_text(left)
    synthetic.write_world(root, [SURFACE], 4, seed=0)
    assert set(state(root)) == whole
