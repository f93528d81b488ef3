"""Scenes made of textures (world/photographs.py): splits, pairs, defects and their masks, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.data import load_mvtec
from iadr1_lib.errors import UserError
from iadr1_lib.world import SIDE, deface, kinds, shoot, texture_files, write_photographs

SPLITS = ("pa_sft", "sc_grpo", "dev")


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two materials with pictures of noise, of which each split gets some."""
    folder, rng = tmp_path_factory.mktemp("textures"), np.random.default_rng(0)
    for material in ("Cork", "Granite"):
        for number in range(0, 200, 10):
            pixels = rng.integers(90, 160, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((128, 128)).save(folder / f"{material}_{number:03d}.webp")
    return folder


def test_no_texture_is_in_two_splits(textures: Path) -> None:
    seen = {
        split: {path for kind in kinds(textures, split, 40) for path in (*kind.textures, *kind.pieces)}
        for split in SPLITS
    }
    assert all(seen.values()) and not (seen["pa_sft"] & seen["sc_grpo"] or seen["pa_sft"] & seen["dev"])
    assert not seen["sc_grpo"] & seen["dev"]


def test_kinds_go_on_where_the_last_ended(textures: Path) -> None:
    assert kinds(textures, "dev", 3, start=2)[0] == kinds(textures, "dev", 5)[2]


@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_a_defect_changes_the_picture_where_its_mask_is(textures: Path, defect_type: str) -> None:
    for kind in kinds(textures, "pa_sft", 8):
        photograph = shoot(kind, 5, defect_type)
        assert photograph.image.shape == (SIDE, SIDE, 3) and photograph.mask.any()
        assert (shoot(kind, 5, defect_type).image == photograph.image).all()
        assert not shoot(kind, 5).mask.any()


@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_a_good_picture_gets_a_defect_and_stays_as_it_was_elsewhere(defect_type: str) -> None:
    pixels = np.random.default_rng(1).integers(100, 140, (200, 300, 3), dtype=np.uint8)
    good = Image.fromarray(pixels)
    painted, mask = deface(good, 3, defect_type)
    before = np.asarray(good.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=float)
    change = np.abs(np.asarray(painted, dtype=float) - before).mean(-1)
    assert change[mask].mean() > 3 * change[~mask].mean() and 12 <= mask.sum() < mask.size / 2


def test_a_folder_of_photographs_can_be_read_and_has_references(textures: Path, tmp_path: Path) -> None:
    products = kinds(textures, "dev", 4)
    write_photographs(tmp_path / "w", products, 16, seed=1)
    table = load_mvtec(tmp_path / "w")
    test = [sample for sample in table if sample.split == "test"]
    assert len(test) == 16 and [s.label for s in sorted(test, key=lambda s: Path(s.image).name)] == ["no", "yes"] * 8
    assert all(sample.mask and sample.location for sample in test if sample.label == "yes")
    assert {s.category for s in table if s.split == "train"} == {kind.name for kind in products}
    time = (tmp_path / "w" / "world.json").stat().st_mtime_ns
    write_photographs(tmp_path / "w", products, 16, seed=1)
    assert (tmp_path / "w" / "world.json").stat().st_mtime_ns == time


def test_without_textures_it_says_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="iadr1 fetch textures"):
        texture_files(tmp_path)
