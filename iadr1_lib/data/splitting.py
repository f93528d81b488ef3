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
LARGEST_GROUP = 0.25  # of a label's pictures: a larger group of near duplicates is a kind of picture, not a copy
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
        train, (dev,), together = divide(rest, [DEV_SHARE], seed)
        sentences.append(f"Dev: {len(dev)} pictures of the categories that are trained on, {together}.")
    names = sorted({name for _, name in _categories(train)})
    sentences.append(f"Training: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}.")
    if left_out:
        sentences.append(f"{len(left_out)} pictures are left out of training: near duplicates of test or dev pictures.")
    if shared := sorted({name for _, name in remaining} & {name for _, name in _categories(chosen)}):
        sentences.append(f"{', '.join(shared)} is both trained on and tested: that result is not zero-shot.")
    return Split(train, dev, chosen, left_out, tuple(sentences))


def divide(
    samples: Sequence[Sample], shares: Sequence[float], seed: int
) -> tuple[list[Sample], list[list[Sample]], str]:
    """Take a share of the pictures of each label for each of several parts: (the rest, the parts, what was together).

    Near duplicates stay together. Where they make up groups that are too large for that, a higher score counts. Each
    part gets both labels, if need be by a group that is larger than its share, as long as the rest keeps some.
    """
    rng = random.Random(f"{seed}, pictures")
    groups, threshold = _groups(samples, len(shares))
    rng.shuffle(groups)
    of_label = _labels(samples)
    wanted = [{label: max(1, round(share * n)) for label, n in of_label.items()} for share in shares]
    parts: list[list[Sample]] = [[] for _ in shares]
    rest: list[list[Sample]] = []
    for group in groups:
        counts = _labels(group)
        for part, limits in zip(parts, wanted, strict=True):
            if all(_labels(part)[label] + n <= limits[label] for label, n in counts.items()):
                part.extend(group)
                break
        else:
            rest.append(group)
    for part in parts:
        for label in sorted(of_label.keys() - _labels(part).keys()):
            having = sorted((group for group in rest if _labels(group)[label]), key=len)
            if len(having) > 1:
                part.extend(having[0])
                rest = [group for group in rest if group is not having[0]]
    together = "near duplicates together"
    if threshold > 1:
        together = "near duplicates apart, since most pictures look alike"
    elif threshold > THRESHOLD:
        together = f"only those together that are alike by {threshold}, since many pictures look alike"
    return [sample for group in rest for sample in group], parts, together


def _by_picture(samples: Sequence[Sample], seed: int) -> Split:
    train, (test, dev), together = divide(samples, [TEST_SHARE, DEV_SHARE], seed)
    name = samples[0].category
    sentence = (
        f"{name} is the only category, so its pictures were split by seed {seed}, {together}: "
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
    sides = [[s for s in samples if (_category(s) in held) is tested] for tested in (True, False)]
    if any(len(_labels(side)) < 2 for side in sides):
        what = f"{', '.join(asked)} cannot be" if asked else "no category can be"
        raise UserError(
            f"{what} held out for the test: it takes good and defective pictures in what is held out, and in what is "
            "left. Name a test set with --test, or choose otherwise with --hold-out"
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
    copies = {pair.first: pair for pair in reversed(near_duplicates(samples, kept))}  # of several the most alike
    left_out.update({image: f"nearly the same as {pair.second} of the {where}" for image, pair in copies.items()})
    return [sample for sample in samples if sample.image not in copies]


def _groups(samples: Sequence[Sample], parts: int) -> tuple[list[list[Sample]], float]:
    """The samples in groups of near duplicates, in order, and the score from which on they are; most hold one picture.

    No group holds much of a label's pictures, and there are more groups of each label than parts to be filled.
    """
    pairs = near_duplicates(samples)
    of_label = _labels(samples)
    for threshold in STRICTER:
        leader = {s.image: s.image for s in samples}

        def first_of(image: str, leader: dict[str, str] = leader) -> str:
            while leader[image] != image:
                image = leader[image]
            return image

        for pair in pairs:
            if pair.score >= threshold:
                leader[first_of(pair.first)] = first_of(pair.second)
        by_leader: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_leader[first_of(sample.image)].append(sample)
        groups = list(by_leader.values())
        counts = [_labels(group) for group in groups]
        if all(
            max(of[label] for of in counts) <= max(2, LARGEST_GROUP * n)
            and sum(label in of for of in counts) > min(parts, n - 1)
            for label, n in of_label.items()
        ):
            break
    return groups, threshold


def _labels(samples: Iterable[Sample]) -> Counter[str]:
    return Counter(sample.label for sample in samples)


def _categories(samples: Iterable[Sample]) -> dict[Category, set[str]]:
    """Category -> the labels of its samples."""
    labels: defaultdict[Category, set[str]] = defaultdict(set)
    for sample in samples:
        labels[_category(sample)].add(sample.label)
    return dict(labels)


def _category(sample: Sample) -> Category:
    return sample.benchmark, sample.category
