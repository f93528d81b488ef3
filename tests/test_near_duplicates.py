"""Near duplicates: copies are found, different pictures of one family are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from iadr1_lib import world
from iadr1_lib.data import THRESHOLD, leakage, likeness, load_samples, near_duplicates
from iadr1_lib.records import Sample

FAMILIES = [*world.train_families(6), *[family for group in world.test_families().values() for family in group]]
PER_FAMILY = 6


def sample(path: Path, category: str = "part") -> Sample:
    return Sample(str(path), "no", None, None, None, category, "drawn", "test", "drawn by the tests")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Six pictures of each of 18 families, normal and defective in turn."""
    folder = tmp_path_factory.mktemp("originals")
    samples = []
    for family in FAMILIES:
        for i in range(PER_FAMILY):
            path = folder / f"{family.name}_{i}.png"
            drawing = world.draw(family, 700 + i, "scratch" if i % 2 else None)
            Image.fromarray(drawing.image).save(path)
            samples.append(sample(path, family.name))
    return samples


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop([round(s) for s in (width * left, height * top, width * (1 - right), height * (1 - bottom))])


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved as JPEG": lambda image: image,
    "half the size": lambda image: resized(image, 0.5),
    "larger": lambda image: resized(image, 1.5),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "brighter": lambda image: image.point(lambda value: min(255, value + 25)),
    "cropped": lambda image: cropped(image, 0.04, 0.04, 0.04, 0.04),
    "cropped at two sides": lambda image: cropped(image, 0.03, 0.02, 0, 0),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(originals: list[Sample], tmp_path: Path, kind: str) -> None:
    """One picture of every family; its copy is matched with it alone."""
    copies = []
    for one in originals[::PER_FAMILY]:
        path = tmp_path / f"{Path(one.image).stem}.{'jpg' if 'JPEG' in kind else 'png'}"
        COPIES[kind](Image.open(one.image)).save(path, **({"quality": 80} if "JPEG" in kind else {}))
        copies.append(sample(path))
    assert leakage(copies, originals) == {}  # no hash sees them
    found = near_duplicates(copies, originals)
    assert {(Path(a).stem, Path(b).stem) for a, b, _ in found} == {(Path(c.image).stem,) * 2 for c in copies}
    assert len(found) == len(copies) and all(THRESHOLD <= score <= 1 for _, _, score in found)


def test_different_pictures_of_a_family_are_not_near_duplicates(originals: list[Sample]) -> None:
    assert near_duplicates(originals) == []


def test_pairs_within_a_table_come_once_and_no_picture_is_its_own(originals: list[Sample], tmp_path: Path) -> None:
    copy = tmp_path / "copy.jpg"
    Image.open(originals[3].image).save(copy, quality=90)
    found = near_duplicates([*originals[:10], sample(copy)])
    assert [(a, b) for a, b, _ in found] == [(originals[3].image, str(copy))]
    assert near_duplicates(originals[:1]) == [] and near_duplicates([], originals) == []
    for number in range(2):
        Image.new("RGB", (40, 30), (90 + number,) * 3).save(tmp_path / f"{number}.png")
    assert near_duplicates([sample(tmp_path / "0.png"), sample(tmp_path / "1.png")]) == []  # blank ones are like none


def test_likeness_is_one_for_itself_and_highest_there(originals: list[Sample]) -> None:
    some = originals[:12]
    table = likeness(some, some)
    assert table.shape == (12, 12)
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-5)
    assert (table.argmax(axis=1) == np.arange(12)).all()


@pytest.mark.parametrize("name", ["MVTec-AD", "VisA", "MPDD"])
def test_real_pictures_of_a_part_are_told_apart_and_their_copies_found(shared: Path, tmp_path: Path, name: str) -> None:
    """Screws, capsules and metal plates; some plates hang there a second time in the same pose, and count as found."""
    real = [one for one in load_samples(shared / "samples" / name) if one.split == "test"][:8]
    assert len(near_duplicates(real)) == {"MVTec-AD": 0, "VisA": 0, "MPDD": 1}[name]
    copy = tmp_path / "copy.jpg"
    cropped(resized(Image.open(real[5].image).convert("RGB"), 0.4), 0.03, 0.03, 0.03, 0.03).save(copy, quality=80)
    found = near_duplicates([replace(real[5], image=str(copy))], real)
    assert found and found[0].second == real[5].image
