"""Splitting any data sets: what must never be on two sides, what is held out, and what cannot be split.

Most samples here have no picture: those whose names are the same up to "~" count as near duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import one_sentence
from PIL import Image

from iadr1_lib import world
from iadr1_lib.data import Split, load_mvtec, split_samples, splitting
from iadr1_lib.data.duplicates import NearDuplicate
from iadr1_lib.records import Sample

HONEST = splitting.near_duplicates
ALIKE = 0.95  # how alike the pictures of a group are


def group_of(sample: Sample) -> str:
    return sample.image.partition("~")[0]


def named_alike(first: Iterable[Sample], second: Iterable[Sample] | None = None) -> list[NearDuplicate]:
    left = list(first)
    pairs = combinations(left, 2) if second is None else ((a, b) for b in second for a in left)
    return [NearDuplicate(a.image, b.image, ALIKE) for a, b in pairs if group_of(a) == group_of(b)]


@pytest.fixture(scope="module", autouse=True)
def by_name() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "near_duplicates", named_alike)
        yield


def pictures(category: str, good: int, bad: int, group: int = 1, benchmark: str = "own") -> list[Sample]:
    """Samples of one category, good ones first, the next `group` of them always near duplicates of each other."""
    samples = []
    for number in range(good + bad):
        image = f"{benchmark}/{category}/{number // group}~{number}.png"
        label = "no" if number < good else "yes"
        samples.append(Sample(image, label, None, None, None, category, benchmark, "test", "named"))  # type: ignore[arg-type]
    return samples


def both_labels(samples: Iterable[Sample]) -> bool:
    return {sample.label for sample in samples} == {"no", "yes"}


def sides(split: Split) -> list[list[Sample]]:
    return [split.train, split.dev, split.test]


sizes = st.tuples(st.integers(12, 30), st.integers(12, 30))


@settings(deadline=None)
@given(sizes, st.lists(sizes, max_size=7), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_no_picture_and_no_near_duplicate_is_on_two_sides(
    one: tuple[int, int], more: list[tuple[int, int]], group: int, echo: bool, seed: int
) -> None:
    samples = [s for n, size in enumerate([one, *more]) for s in pictures(f"part {n}", *size, group)]
    if echo and more:  # copies of the first category's pictures in another
        samples += [replace(s, image=f"{s.image}.jpg", category="echo") for s in samples[: sum(one)]]
    split = split_samples(samples, seed)
    assert split == split_samples(samples, seed)
    images = [s.image for side in sides(split) for s in side] + list(split.left_out)
    assert sorted(images) == sorted(s.image for s in samples)
    for a, b in combinations(sides(split), 2):
        assert not set(map(group_of, a)) & set(map(group_of, b))
    assert all(map(both_labels, sides(split)))
    if more:  # zero-shot
        assert not {s.category for s in split.test} & {s.category for s in (*split.train, *split.dev)}
    else:
        assert 0.1 < len(split.test) / len(samples) < 0.4 and 0.05 < len(split.dev) / len(samples) < 0.3


KINDS: dict[str, Callable[[Sample], str]] = {
    "all alike": lambda s: "",
    "all defective ones alike": lambda s: s.label if s.label == "yes" else s.image,
    "two groups": lambda s: s.label,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [(60, 20), (20, 60), (4, 20)])
def test_look_alikes_of_any_number_still_give_a_split(
    monkeypatch: pytest.MonkeyPatch, labels: tuple[int, int], kind: str
) -> None:
    samples, name = pictures("part", *labels), KINDS[kind]
    for score in (ALIKE, 0.99):
        alike = [NearDuplicate(a.image, b.image, score) for a, b in combinations(samples, 2) if name(a) == name(b)]
        monkeypatch.setattr(splitting, "near_duplicates", lambda *_, alike=alike: alike)
        split = split_samples(samples, 0)
        assert all(map(both_labels, sides(split)))
        assert sum(map(len, sides(split))) == len(samples)


def test_a_group_larger_than_the_share_goes_where_a_label_would_be_missing() -> None:
    """Twelve defective pictures in four groups of three, of which dev may have two pictures."""
    samples = [*pictures("part", 40, 0), *pictures("part", 0, 12, group=3, benchmark="worn")]
    rest, (test, dev), _ = splitting.divide(samples, [splitting.TEST_SHARE, splitting.DEV_SHARE], seed=0)
    assert Counter(s.label for s in dev)["yes"] == 3 and both_labels(test) and both_labels(rest)


def test_one_category_is_split_by_picture_and_that_is_said() -> None:
    split = split_samples(pictures("bolt", 40, 40), seed=1)
    assert Counter(s.label for s in split.test) == {"no": 10, "yes": 10}
    assert Counter(s.label for s in split.dev) == {"no": 6, "yes": 6}
    assert "bolt" in split.sentences[0] and "not zero-shot" in split.sentences[0]


def test_with_enough_categories_dev_is_a_whole_one() -> None:
    samples = [s for n in range(5) for s in pictures(f"part {n}", 12, 12)]
    seen = set()
    for seed in range(8):
        split = split_samples(samples, seed)
        (dev,), (test,) = ({s.category for s in side} for side in (split.dev, split.test))
        assert len(split.dev) == 24 and len({dev, test} | {s.category for s in split.train}) == 5
        assert any(dev in sentence for sentence in split.sentences) and any(test in s for s in split.sentences)
        seen.add((dev, test))
    assert len(seen) > 2  # the seed chooses
    few = split_samples(samples[:72], 0)
    assert {s.category for s in few.dev} == {s.category for s in few.train}


def test_categories_are_held_out_as_asked_for() -> None:
    samples = [s for n in range(4) for s in pictures(f"part {n}", 12, 12)] + pictures("plain", 20, 0)
    split = split_samples(samples, 0, hold_out=["part 1", "part 3"])
    assert {s.category for s in split.test} == {"part 1", "part 3"} and len(split.test) == 48
    assert any("part 1, part 3" in sentence for sentence in split.sentences)
    one_sentence(lambda: split_samples(samples, 0, hold_out=["part 1", "part 7"]), "part 7", "part 0, part 1")
    defective = [f"part {n}" for n in range(4)]
    for asked in (["plain"], defective, [*defective, "plain"]):
        one_sentence(partial(split_samples, samples, 0, hold_out=asked), "--test", "--hold-out")
    one_sentence(lambda: split_samples(pictures("bolt", 20, 20), 0, hold_out=["bolt"]), "--test")


def test_a_test_set_of_its_own_stays_whole_and_its_near_duplicates_are_not_trained_on() -> None:
    test = pictures("bolt", 6, 6, benchmark="given")
    pool = pictures("bolt", 30, 30)
    copies = [replace(pool[p], image=f"{group_of(test[n])}~copy.png") for p, n in ((0, 0), (40, 7))]
    split = split_samples([*pool, *copies], 0, test=test)
    assert split.test == test
    assert set(split.left_out) == {copy.image for copy in copies}
    assert test[7].image in split.left_out[copies[1].image] and "test" in split.left_out[copies[1].image]
    assert any(sentence.startswith("2 pictures are left out") for sentence in split.sentences)
    assert any("bolt" in sentence and "not zero-shot" in sentence for sentence in split.sentences)
    only_copies = [replace(s, image=f"{group_of(s)}~again.png") for s in test]
    one_sentence(lambda: split_samples(only_copies, 0, test=test), "no picture is left to train on")


def test_pictures_saved_again_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write_world(tmp_path / "w", world.train_families(2), 24, seed=0)
    pool = list(load_mvtec(tmp_path / "w"))
    test = [sample for sample in pool if sample.category == pool[0].category]
    copy = tmp_path / "copy.jpg"
    Image.open(test[3].image).save(copy, quality=90)
    monkeypatch.setattr(splitting, "near_duplicates", HONEST)
    rest = [sample for sample in pool if sample not in test]
    split = split_samples([*rest, replace(rest[0], image=str(copy))], 0, test=test)
    assert split.left_out == {str(copy): f"nearly the same as {test[3].image} of the test"}
