"""One-shot: a normal picture of the same category for each picture that is asked about.

    table = load_samples("test_DTD_format.json", root="data")
    references(table, templates=table.templates)                    # those that the index names
    table = load_samples("MVTec-AD")
    references([s for s in table if s.split == "test"], table)      # from the normal training pictures

Every picture gets one or the call fails with one sentence: a picture asked without a reference would be zero-shot.
"""

from __future__ import annotations

import filecmp
import os
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

    Where the index names templates of this kind, they count: the first of the similar ones, a drawn one of the random
    ones. Elsewhere it is a normal training picture of `pool` of the same category, for "random" drawn by seed and file
    name, for "similar" the one with the most similar coarse structure (our measure: how the released index chose its
    similar ones is not stated). Where all samples and all training pictures are of one category each, its names need
    not agree.

    Raises:
        UserError: an unknown kind; samples or templates that are not on disk, or samples without a reference, counted.
    """
    if kind not in KINDS:
        raise UserError(f"no kind of reference is called {kind}: choose from {', '.join(KINDS)}")
    require_present(samples)
    named = {image: kinds[kind] for image, kinds in (templates or {}).items() if kinds.get(kind)}
    choices = {
        sample.image: _shuffled(named[sample.image], sample, seed) if kind == "random" else named[sample.image]
        for sample in samples
        if sample.image in named
    }
    _require_on_disk(choices)
    choices |= _from_pool([sample for sample in samples if sample.image not in named], pool, kind, seed)
    found = {sample.image: _other_picture(sample.image, choices[sample.image]) for sample in samples}
    _require_all(samples, found, pool)
    return {image: path for image, path in found.items() if path is not None}


def require_references(samples: Iterable[Sample], given: Mapping[str, Path]) -> None:
    """Raise UserError if a sample has none: it must not be asked zero-shot among one-shot ones."""
    without = [sample.image for sample in samples if sample.image not in given]
    if without:
        raise UserError(f"{len(without)} pictures have no reference, the first is {without[0]}: give each one or none.")


def _from_pool(samples: Sequence[Sample], pool: Sequence[Sample], kind: str, seed: int) -> dict[str, list[Path]]:
    """Image -> normal training pictures of its category, the preferred one first; an empty list where there is none."""
    normal = _by_category(sample for sample in pool if sample.split == "train" and sample.label == "no")
    asked = _by_category(samples)
    if len(asked) == len(normal) == 1:
        normal = dict(zip(asked, normal.values(), strict=True))
    found: dict[str, list[Path]] = {}
    for category, group in asked.items():
        candidates = normal.get(category, [])
        paths = [Path(sample.image) for sample in candidates]
        if kind == "similar" and candidates:
            orders = np.argsort(-likeness(group, candidates), axis=1, kind="stable")
            found |= {s.image: [paths[i] for i in order] for s, order in zip(group, orders.tolist(), strict=True)}
        else:
            found |= {sample.image: _shuffled(paths, sample, seed) for sample in group}
    return found


def _by_category(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.category].append(sample)
    return groups


def _shuffled(paths: Sequence[Path], sample: Sample, seed: int) -> list[Path]:
    """The paths in an order drawn by seed and the end of the picture's path, the same on every machine."""
    tail = "/".join(Path(sample.image).parts[-3:])
    return random.Random(f"{seed}/{sample.category}/{tail}").sample(list(paths), len(paths))


def _other_picture(image: str, candidates: Iterable[Path]) -> Path | None:
    """The first candidate that is not the picture itself, byte for byte."""
    return next((path for path in candidates if not filecmp.cmp(path, image, shallow=False)), None)


def _require_on_disk(choices: Mapping[str, Iterable[Path]]) -> None:
    named = list(dict.fromkeys(path for paths in choices.values() for path in paths))
    missing = [path for path in named if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(named)} reference pictures that the index names are not on disk, the first is "
            f"{missing[0]}: put them there, or ask without references."
        )


def _require_all(samples: Sequence[Sample], found: Mapping[str, Path | None], pool: Sequence[Sample]) -> None:
    without = [sample for sample in samples if found[sample.image] is None]
    if not without:
        return
    categories = list(dict.fromkeys(sample.category for sample in without))
    known = sorted({sample.category for sample in pool if sample.split == "train" and sample.label == "no"})
    there = f"only of {', '.join(known)}" if known else "none at all"
    raise UserError(
        f"One-shot is not possible: {len(without)} of {len(samples)} pictures have no reference, their categories are "
        f"{', '.join(categories)}. An index names none for them, and of normal training pictures there are {there}: "
        "name a folder with theirs, or ask without references."
    )
