"""One-shot: a normal picture of the same category for each picture that is asked about.

Every picture gets one or the call fails: a picture that is asked about without a reference would be zero-shot.
"""

from __future__ import annotations

import filecmp
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from iadr1_lib.data import Templates, likeness, require_present
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample

KINDS = ("similar", "random")  # as the fields of the released index, similar_templates and random_templates


def references(
    samples: Sequence[Sample],
    pool: Sequence[Sample] = (),
    *,
    kind: str = "similar",
    seed: int = 0,
    templates: Templates | None = None,
) -> dict[str, Path]:
    """Image -> its reference: never the same file under another name, and the same at every call.

    Where the index names templates of this kind, they count: the first of the similar ones, one of the random ones at
    random. Elsewhere it is a normal training picture of `pool` of the same category: for "random" chosen by seed and
    file name, for "similar" the one with the most similar coarse structure (our measure: how the released index chose
    its similar ones is not stated). Where all samples and all training pictures are of one category each, its names
    need not agree.

    Raises:
        UserError: an unknown kind; samples or templates that are not on disk, or samples without a reference, counted.
    """
    if kind not in KINDS:
        raise UserError(f"no kind of reference is called {kind}: choose from {', '.join(KINDS)}")
    require_present(samples)
    named = {s.image: paths for s in samples if (paths := (templates or {}).get(s.image, {}).get(kind))}
    files = list(dict.fromkeys(path for paths in named.values() for path in paths))
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(
            f"{len(missing)} of the {len(files)} reference pictures that the index names are not on disk, the first is "
            f"{missing[0]}: put them there, or ask without references."
        )
    unnamed = _by_category(sample for sample in samples if sample.image not in named)
    normal = _by_category(sample for sample in pool if sample.split == "train" and sample.label == "no")
    by_category = dict(zip(unnamed, normal.values(), strict=True)) if len(unnamed) == len(normal) == 1 else normal
    choices = dict(named)
    for category, group in unnamed.items():
        candidates = by_category.get(category, [])
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
        if path := next(others, None):
            chosen[sample.image] = path
    if without := [sample for sample in samples if sample.image not in chosen]:
        there = f"only of {', '.join(sorted(normal))}" if normal else "none at all"
        raise UserError(
            f"One-shot is not possible: {len(without)} of {len(samples)} pictures have no reference, their categories "
            f"are {', '.join(_by_category(without))}. An index names none for them, and of normal training pictures "
            f"there are {there}: name a folder with theirs, or ask without references."
        )
    return chosen


def require_references(samples: Iterable[Sample], given: Mapping[str, Path]) -> None:
    """Raise UserError if a sample has none: it must not be asked zero-shot among one-shot ones."""
    if without := [sample.image for sample in samples if sample.image not in given]:
        raise UserError(f"{len(without)} pictures have no reference, the first is {without[0]}: give each one or none.")


def _by_category(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.category].append(sample)
    return groups
