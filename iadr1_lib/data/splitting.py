"""Samples of any data sets into training, dev and test, with no picture and no near duplicate on two sides.

Whole categories are held out where there are enough of them, so that the test is zero-shot, as the paper's is across
data sets; a single category is split by picture.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from iadr1_lib.data.duplicates import THRESHOLD, near_duplicates
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample

TEST_SHARE, DEV_SHARE = 0.25, 0.15  # of the categories, or of the pictures
FEWEST_FOR_DEV = 4  # categories, from which on a whole one is the dev set
STRICTER = (THRESHOLD, 0.94, 0.97, 1.01)  # scores from which on pictures stay together; the last: none do
LARGEST_GROUP = 0.25  # of the pictures: a larger group of near duplicates is a kind of picture, not a copy
Category = tuple[str, str]  # data set and category


@dataclass(frozen=True)
class Split:
    """The three parts, what was left out of training (image -> why), and sentences that say how it was done."""

    train: list[Sample]
    dev: list[Sample]
    test: list[Sample]
    left_out: dict[str, str] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()


def split_samples(
    samples: Sequence[Sample], seed: int, test: Sequence[Sample] = (), hold_out: Iterable[str] = ()
) -> Split:
    """Split `samples` by category, or by picture where there is one category only.

    Args:
        test: samples to test on; without them a quarter of the categories of `samples`, chosen by the seed.
        hold_out: categories of `samples` to test on, in place of the seed's choice.

    Raises:
        UserError: a category to hold out is not there, has one label only, or none is left to train on.
    """
    categories = _categories(samples)
    sentences: list[str] = []
    if test:
        rest, chosen = list(samples), list(test)
        sentences.append(f"Test: the {len(chosen)} pictures given for it.")
    elif len(categories) == 1 and not hold_out:
        return _by_picture(samples, seed)
    else:
        held = _held_out(categories, samples, seed, list(hold_out), sentences)
        chosen = [s for s in samples if _category(s) in held]
        rest = [s for s in samples if _category(s) not in held]
    left_out: dict[str, str] = {}
    rest = _without_copies(rest, chosen, "test", left_out)
    if not rest:
        raise UserError("no picture is left to train on: each has a near duplicate in the test set")
    remaining = _categories(rest)
    if len(remaining) >= FEWEST_FOR_DEV and (free := _dispensable(rest)):
        dev_name = random.Random(f"{seed}, dev").choice(free)
        dev = [s for s in rest if _category(s) == dev_name]
        train = _without_copies([s for s in rest if _category(s) != dev_name], dev, "dev set", left_out)
        sentences.append(f"Dev, chosen by seed {seed}: {dev_name[1]}.")
    else:
        train, (dev,) = divide(rest, [DEV_SHARE], seed)
        sentences.append(f"Dev: {len(dev)} pictures of the categories that are trained on, near duplicates together.")
    names = sorted({name for _, name in _categories(train)})
    sentences.append(f"Training: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}.")
    if left_out:
        sentences.append(f"{len(left_out)} pictures are left out of training: near duplicates of test or dev pictures.")
    if shared := sorted({name for _, name in remaining} & {name for _, name in _categories(chosen)}):
        sentences.append(f"{', '.join(shared)} is both trained on and tested: that result is not zero-shot.")
    return Split(train, dev, chosen, left_out, tuple(sentences))


def divide(samples: Sequence[Sample], shares: Sequence[float], seed: int) -> tuple[list[Sample], list[list[Sample]]]:
    """Take a share of the pictures of each label for each of several parts: (the rest, the parts).

    Near duplicates stay together. Where they make up groups that are too large for that, a higher score counts.
    """
    rng = random.Random(f"{seed}, pictures")
    groups = _groups(samples)
    rng.shuffle(groups)
    of_label = Counter(s.label for s in samples)
    wanted = [{label: max(1, round(share * n)) for label, n in of_label.items()} for share in shares]
    parts: list[list[Sample]] = [[] for _ in shares]
    rest: list[Sample] = []
    for group in groups:
        counts = Counter(s.label for s in group)
        open_parts = (
            part
            for part, limits in zip(parts, wanted, strict=True)
            if all(Counter(s.label for s in part)[label] + n <= limits[label] for label, n in counts.items())
        )
        next(open_parts, rest).extend(group)
    return rest, parts


def _by_picture(samples: Sequence[Sample], seed: int) -> Split:
    train, (test, dev) = divide(samples, [TEST_SHARE, DEV_SHARE], seed)
    name = samples[0].category
    sentence = (
        f"{name} is the only category, so its pictures were split by seed {seed}, near duplicates together: "
        f"{len(train)} for training, {len(dev)} for dev, {len(test)} for the test. The result is not zero-shot: "
        "it says how the model does on more pictures of the same kind."
    )
    return Split(train, dev, test, {}, (sentence,))


def _held_out(
    categories: dict[Category, set[str]], samples: Sequence[Sample], seed: int, asked: list[str], sentences: list[str]
) -> set[Category]:
    """The categories of the test; adds the sentence that says which."""
    if asked:
        known = {name for _, name in categories}
        if unknown := sorted(set(asked) - known):
            raise UserError(
                f"--hold-out {', '.join(unknown)}: there is no such category, only {', '.join(sorted(known))}"
            )
        held = {key for key in categories if key[1] in asked}
        why = "as asked for"
    else:
        free, count = _dispensable(samples), max(1, round(TEST_SHARE * len(categories)))
        held = set(random.Random(f"{seed}, test").sample(free, min(count, len(free))))
        why = f"chosen by seed {seed}; --hold-out chooses others"
    labels = {s.label for s in samples if _category(s) in held}
    if len(labels) < 2 or len(held) == len(categories):
        raise UserError(
            "no category can be held out for the test: it takes good and defective pictures in it, and in at least one "
            "other. Name a test set with --test, or categories with --hold-out"
        )
    sentences.append(f"Held out for the test ({why}): {', '.join(sorted(name for _, name in held))}.")
    return held


def _dispensable(samples: Sequence[Sample]) -> list[Category]:
    """Categories with both labels, in order, without which at least half of the defective pictures are left."""
    defective = Counter(_category(s) for s in samples if s.label == "yes")
    return sorted(
        key
        for key, labels in _categories(samples).items()
        if len(labels) == 2 and 2 * defective[key] <= defective.total()
    )


def _without_copies(
    samples: list[Sample], kept: Sequence[Sample], where: str, left_out: dict[str, str]
) -> list[Sample]:
    """The samples without the near duplicates of `kept`, which are noted in `left_out`."""
    copies = {pair.first: pair for pair in near_duplicates(samples, kept)}
    left_out.update({image: f"nearly the same as {pair.second} of the {where}" for image, pair in copies.items()})
    return [sample for sample in samples if sample.image not in copies]


def _groups(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples in groups of near duplicates, in order; most groups hold one picture."""
    pairs = near_duplicates(samples)
    for threshold in STRICTER:
        leader = {s.image: s.image for s in samples}

        def first_of(image: str, leader: dict[str, str] = leader) -> str:
            while leader[image] != image:
                image = leader[image]
            return image

        for pair in pairs:
            if pair.score >= threshold:
                leader[first_of(pair.first)] = first_of(pair.second)
        groups: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            groups[first_of(sample.image)].append(sample)
        if max(map(len, groups.values())) <= max(2, LARGEST_GROUP * len(samples)):
            break
    return list(groups.values())


def _categories(samples: Iterable[Sample]) -> dict[Category, set[str]]:
    """Category -> the labels of its samples."""
    labels: defaultdict[Category, set[str]] = defaultdict(set)
    for sample in samples:
        labels[_category(sample)].add(sample.label)
    return dict(labels)


def _category(sample: Sample) -> Category:
    return sample.benchmark, sample.category
