"""A practitioner's baseline: how far the cells of a picture are from those of a few good pictures, as in PatchCore.

    chosen = references(samples, pool, shots=4)
    scored = nearest(samples, chosen, features)     # features: pictures -> array of (pictures, cells, channels)
    ranked(scored)                                  # AUROC of each category, with intervals
    called(scored, held_out(pool, features, 4))     # whether each picture is called defective

PatchCore: Roth et al., CVPR 2022. Here without its coreset and its weights, and with any features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from iadr1_lib.data import open_image
from iadr1_lib.evaluation.metrics import ranking
from iadr1_lib.evaluation.one_shot import references
from iadr1_lib.evaluation.sanity import FALSE_ALARMS, NORMAL_NEEDED
from iadr1_lib.records import Sample

Features = Callable[[list[Image.Image]], NDArray[Any]]
ODDEST = 3  # cells of a picture whose distances are averaged
_AT_ONCE = 16  # pictures that are given to the feature function together


def nearest(samples: Sequence[Sample], given: Mapping[str, Sequence[Path]], features: Features) -> pd.DataFrame:
    """A score for each sample: the mean cosine distance of its ODDEST cells to the nearest cell of its references.

    Columns benchmark, category, image, label, and the score as p_yes, which is what `ranking` orders by (it is a
    distance, no probability). UserError if a picture cannot be read.
    """
    scores: dict[str, float] = {}
    for group in _by_category(samples).values():  # the cells of one category are held in memory
        paths = dict.fromkeys(path for s in group for path in (Path(s.image), *given[s.image]))
        cells = _cells(list(paths), features)
        for sample in group:
            good = np.concatenate([cells[path] for path in given[sample.image]])
            neighbours = NearestNeighbors(n_neighbors=1, metric="cosine").fit(good)
            distances, _ = neighbours.kneighbors(cells[Path(sample.image)])
            scores[sample.image] = float(np.sort(distances.ravel())[-ODDEST:].mean())
    columns = ["benchmark", "category", "image", "label"]
    return pd.DataFrame([[getattr(s, name) for name in columns] for s in samples], columns=columns).assign(
        p_yes=[scores[sample.image] for sample in samples]
    )


def ranked(scored: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """`ranking` of each category alone, as <benchmark>/<category>: distances of two categories do not compare."""
    return ranking(scored.assign(benchmark=scored["benchmark"] + "/" + scored["category"]), seed)


def held_out(
    pool: Sequence[Sample], features: Features, shots: int = 1, kind: str = "similar", seed: int = 0
) -> pd.DataFrame:
    """`nearest` of normal training pictures, each by `shots` others, of the categories that have enough of them.

    `kind` and `seed` are those of the `references` that the pictures in question have.
    """
    normal = [sample for sample in pool if sample.split == "train" and sample.label == "no"]
    groups = [group for group in _by_category(normal).values() if len(group) >= max(NORMAL_NEEDED, shots + 1)]
    good = [sample for group in groups for sample in group]
    return nearest(good, references(good, good, kind=kind, seed=seed, shots=shots), features)


def called(scored: pd.DataFrame, good: pd.DataFrame | None = None) -> pd.Series:
    """Whether each picture is called defective, 1 or 0; NaN in a category with fewer than NORMAL_NEEDED good pictures.

    It is where its score lies above those of all but FALSE_ALARMS percent of the category's rows of `good` (see
    :func:`held_out`), or where there are none, of its own good pictures: then the rate of false alarms is set, and
    not measured.
    """
    own = scored[scored["label"] == "no"]
    answers = pd.Series(np.nan, index=scored.index)
    for (benchmark, category), group in scored.groupby(["benchmark", "category"]):
        for rows in [own] if good is None else [good, own]:
            scores = rows.loc[(rows["benchmark"] == benchmark) & (rows["category"] == category), "p_yes"]
            if len(scores):
                break
        if len(scores) >= NORMAL_NEEDED:
            answers[group.index] = (group["p_yes"] > np.percentile(scores, 100 - FALSE_ALARMS)).astype(float)
    return answers


def _cells(paths: Sequence[Path], features: Features) -> dict[Path, NDArray[Any]]:
    cells: dict[Path, NDArray[Any]] = {}
    for start in range(0, len(paths), _AT_ONCE):
        batch = paths[start : start + _AT_ONCE]
        cells |= zip(batch, features([open_image(path) for path in batch]), strict=True)
    return cells


def _by_category(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.benchmark, sample.category].append(sample)
    return groups
