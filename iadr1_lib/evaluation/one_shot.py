"""Normal pictures of the same category for each picture that is asked about, one or a few.

Every picture gets them or the call fails: a picture that is asked about without a reference would be zero-shot.
"""

from __future__ import annotations

import filecmp
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from iadr1_lib.data import REFERENCE_KINDS, Templates, likeness, require_present
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample


def references(
    samples: Sequence[Sample],
    pool: Sequence[Sample] = (),
    *,
    kind: str = "similar",
    seed: int = 0,
    templates: Templates | None = None,
    shots: int = 1,
    partial: bool = False,
) -> dict[str, list[Path]]:
    """Image -> its `shots` references, the best first: never its own file under any name, the same at every call.

    Where the data set names templates of this kind, they alone count (so there may be fewer): the first of the similar
    ones, random ones at random. Elsewhere they are normal training pictures of `pool` of the same category: for
    "random" chosen by seed and file name, for "similar" those with the most similar coarse structure (our measure: how
    the released index chose its similar ones is not stated). Where all samples and all training pictures are of one
    category each, its names need not agree. Where a category has no normal training picture, its normal test pictures
    in `pool` and `samples` serve, each for the others (:func:`lending` names such categories).

    Args:
        partial: leave out samples without enough references instead of raising.

    Raises:
        UserError: an unknown kind; samples or templates that are not on disk, or samples without enough references,
            counted.
    """
    if kind not in REFERENCE_KINDS:
        raise UserError(f"no kind of reference is called {kind}: choose from {', '.join(REFERENCE_KINDS)}")
    require_present(samples)
    named = {s.image: paths for s in samples if (paths := (templates or {}).get(s.image, {}).get(kind))}
    files = list(dict.fromkeys(path for paths in named.values() for path in paths))
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(
            f"{len(missing)} of the {len(files)} reference pictures that the data set names are not on disk, the first "
            f"is {missing[0]}: put them there, or ask without references."
        )
    unnamed = _by_category(sample for sample in samples if sample.image not in named)
    normal = _by_category(sample for sample in pool if sample.split == "train" and sample.label == "no")
    everything = {sample.image: sample for sample in [*pool, *samples]}.values()
    lent = _by_category(sample for sample in everything if sample.split == "test" and sample.label == "no")
    by_category = dict(zip(unnamed, normal.values(), strict=True)) if len(unnamed) == len(normal) == 1 else normal
    choices = dict(named)
    for category, group in unnamed.items():
        candidates = by_category.get(category) or lent.get(category, [])
        paths = [Path(candidate.image) for candidate in candidates]
        orders: Sequence[Sequence[int]] = [range(len(paths))] * len(group)
        if kind == "similar" and candidates:
            orders = np.argsort(-likeness(group, candidates), axis=1, kind="stable").tolist()
        choices |= {sample.image: [paths[i] for i in order] for sample, order in zip(group, orders, strict=True)}
    chosen = {}
    for sample in samples:
        paths = choices[sample.image]
        if kind == "random":  # depends on the seed and the end of the picture's path alone
            tail = "/".join(Path(sample.image).parts[-3:])
            paths = random.Random(f"{seed}/{sample.category}/{tail}").sample(paths, len(paths))
        others = (path for path in paths if not filecmp.cmp(path, sample.image, shallow=False))
        chosen[sample.image] = list(islice(others, shots))
    enough = {sample.image: 1 if sample.image in named else shots for sample in samples}
    without = [sample for sample in samples if len(chosen[sample.image]) < enough[sample.image]]
    if without and partial:
        return {image: paths for image, paths in chosen.items() if len(paths) >= enough[image]}
    if without:
        there = f"only of {_first(sorted(normal))}" if normal else "none at all"
        lacking = "no reference" if shots == 1 else f"fewer than {shots} references"
        raise UserError(
            f"Asking with references is not possible: {len(without)} of {len(samples)} pictures have {lacking}, their "
            f"categories are {_first(list(_by_category(without)))}. The data set names none for them and has too few "
            f"good test pictures, and of normal training pictures there are {there}: name a folder with theirs, or ask "
            "without references."
        )
    return chosen


def lending(samples: Iterable[Sample], given: Mapping[str, Sequence[Path]]) -> list[str]:
    """The categories of samples whose references are themselves among the samples."""
    samples = list(samples)
    asked = {sample.image for sample in samples}
    return list(_by_category(sample for sample in samples if not asked.isdisjoint(map(str, given[sample.image]))))


def require_references(samples: Iterable[Sample], given: Mapping[str, Sequence[Path]]) -> None:
    """Raise UserError if a sample has none: it must not be asked zero-shot among one-shot ones."""
    if without := [sample.image for sample in samples if not given.get(sample.image)]:
        raise UserError(f"{len(without)} pictures have no reference, the first is {without[0]}: give each one or none.")


def _first(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _by_category(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.category].append(sample)
    return groups
