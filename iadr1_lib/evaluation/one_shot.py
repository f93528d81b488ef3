"""One-shot: a normal picture of the same category for each picture that is asked about.

    table = load_samples("test_DTD_format.json", root="data")
    references(table, templates=table.templates)                    # those that the index names
    table = load_samples("MVTec-AD")
    references([s for s in table if s.split == "test"], table)      # from the normal training pictures

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
    templates = templates or {}
    named = {s.image: paths for s in samples if (paths := templates.get(s.image, {}).get(kind))}
    _require_on_disk(named)
    unnamed = _by_category(sample for sample in samples if sample.image not in named)
    normal = _by_category(sample for sample in pool if sample.split == "train" and sample.label == "no")
    by_category = dict(zip(unnamed, normal.values(), strict=True)) if len(unnamed) == len(normal) == 1 else normal
    choices = dict(named)
    for category, group in unnamed.items():
        candidates = by_category.get(category, [])
        orders: Iterable[Iterable[int]] = [range(len(candidates))] * len(group)
        if kind == "similar" and candidates:
            orders = np.argsort(-likeness(group, candidates), axis=1, kind="stable").tolist()
        choices |= {s.image: [Path(candidates[i].image) for i in o] for s, o in zip(group, orders, strict=True)}
    if kind == "random":
        choices = {sample.image: _shuffled(choices[sample.image], sample, seed) for sample in samples}
    found: dict[str, Path] = {}
    for sample in samples:
        others = (path for path in choices[sample.image] if not filecmp.cmp(path, sample.image, shallow=False))
        if path := next(others, None):
            found[sample.image] = path
    without = [sample for sample in samples if sample.image not in found]
    if without:
        there = f"only of {', '.join(sorted(normal))}" if normal else "none at all"
        raise UserError(
            f"One-shot is not possible: {len(without)} of {len(samples)} pictures have no reference, their categories "
            f"are {', '.join(_by_category(without))}. An index names none for them, and of normal training pictures "
            f"there are {there}: name a folder with theirs, or ask without references."
        )
    return found


def require_references(samples: Iterable[Sample], given: Mapping[str, Path]) -> None:
    """Raise UserError if a sample has none: it must not be asked zero-shot among one-shot ones."""
    without = [sample.image for sample in samples if sample.image not in given]
    if without:
        raise UserError(f"{len(without)} pictures have no reference, the first is {without[0]}: give each one or none.")


def _by_category(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.category].append(sample)
    return groups


def _shuffled(paths: Sequence[Path], sample: Sample, seed: int) -> list[Path]:
    """The paths in a random order, which depends on the seed and the end of the picture's path alone."""
    tail = "/".join(Path(sample.image).parts[-3:])
    return random.Random(f"{seed}/{sample.category}/{tail}").sample(list(paths), len(paths))


def _require_on_disk(named: Mapping[str, Iterable[Path]]) -> None:
    paths = list(dict.fromkeys(path for own in named.values() for path in own))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} reference pictures that the index names are not on disk, the first is "
            f"{missing[0]}: put them there, or ask without references."
        )
