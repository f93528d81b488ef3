"""Simple predictors that see no language model: what a benchmark lets anyone reach.

Three of them look at no defect at all (constant answers, file size, brightness), one is a classical detector of odd
patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from iadr1_lib.data import open_image
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation.intervals import Estimate, estimate_rows, label_means, mean_of_labels
from iadr1_lib.records import Sample

BASELINES = ("always_yes", "always_no", "file_size", "mean_brightness", "classical_detector")
NORMAL_NEEDED = 5  # normal pictures of a category below which the detector calls nothing defective
_SIDE = 96  # pixels; the detector reduces every picture to this
_PATCH = 12  # pixels, so 8 × 8 patches
_FALSE_ALARMS = 10  # percent of normal pictures that the detector may reject
_FOLDS = 5


def label_only_baselines(train: Sequence[Sample], test: Sequence[Sample], seed: int = 0) -> pd.DataFrame:
    """Balanced accuracy of BASELINES on `test`; table as from `score`, metrics "always_yes/balanced_accuracy" …

    File size and mean brightness are fair attempts at cheating: each, less its category's median, goes into a
    shallow decision tree (two cuts, so bands too) that is fitted on the benchmark's own labels, 5-fold
    cross-fitted. The classical detector compares patches (colour, spread, edge strength in four directions)
    with those of the category's normal `train` pictures: an image's score is the distance of its oddest
    patches to their nearest neighbours, and one above the 90th percentile of held-out normal pictures is
    called defective. Where a category has no normal train picture, its normal test pictures serve, each
    judged by the others of its folds.

    Raises:
        UserError: a picture cannot be read, or there are no test pictures.
    """
    if not test:
        raise UserError("There are no test pictures to measure the baselines on: check the data folder.")
    frame = pd.DataFrame([asdict(sample) for sample in test])
    patches, frame["mean_brightness"] = _describe(test)
    frame["file_size"] = [float(Path(sample.image).stat().st_size) for sample in test]
    normal_train = [sample for sample in train if sample.label == "no"]
    train_frame = pd.DataFrame([asdict(sample) for sample in normal_train], columns=list(frame.columns))
    called = {"always_yes": np.ones(len(frame), bool), "always_no": np.zeros(len(frame), bool)}
    called |= {feature: _tree(frame, feature, seed) for feature in ("file_size", "mean_brightness")}
    called["classical_detector"] = _detect(train_frame, _describe(normal_train)[0], frame, patches)
    rng = np.random.default_rng(seed)

    def accuracies(group: pd.DataFrame) -> dict[str, Estimate]:
        return {
            f"{name}/balanced_accuracy": mean_of_labels(
                label_means(
                    group.assign(correct=called[name][group.index] == (group["label"] == "yes")), "correct", rng
                )
            )
            for name in BASELINES
        }

    return pd.DataFrame(estimate_rows(frame, accuracies))


def _describe(samples: Sequence[Sample]) -> tuple[NDArray[np.float64], list[float]]:
    """Patch descriptions, (pictures, 64 patches, 8 numbers), and each picture's mean brightness (0 to 1)."""
    described, brightness = [], []
    count = _SIDE // _PATCH
    for sample in samples:
        picture = open_image(sample.image)
        colour = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=float) / 255
        brightness.append(float(np.asarray(picture.convert("L"), dtype=float).mean() / 255))
        grey = np.pad(colour.mean(axis=2), 1, mode="edge")
        middle = grey[1:-1, 1:-1]
        neighbours = (grey[1:-1, 2:], grey[2:, 1:-1], grey[2:, 2:], grey[2:, :-2])  # right, down, both diagonals
        columns = [*np.moveaxis(colour, 2, 0), middle**2, *(np.abs(other - middle) for other in neighbours)]
        blocks = np.stack(columns, axis=-1).reshape(count, _PATCH, count, _PATCH, -1).mean(axis=(1, 3))
        blocks[..., 3] = np.sqrt(np.maximum(0, blocks[..., 3] - blocks[..., :3].mean(axis=-1) ** 2))
        described.append(blocks.reshape(count**2, -1))
    return np.asarray(described), brightness


def _tree(frame: pd.DataFrame, feature: str, seed: int) -> NDArray[np.bool_]:
    """Whether each picture is called defective by one feature alone, benchmark by benchmark."""
    called = np.zeros(len(frame), dtype=bool)
    for _, group in frame.groupby("benchmark"):
        folds = min(_FOLDS, int(group["label"].value_counts().reindex(["no", "yes"], fill_value=0).min()))
        if folds < 2:
            continue  # too few of one label to learn from; balanced accuracy has wide bounds or none
        centred = group[feature] - group.groupby("category")[feature].transform("median")
        tree = DecisionTreeClassifier(max_depth=2, min_samples_leaf=0.05, class_weight="balanced", random_state=seed)
        split = StratifiedKFold(folds, shuffle=True, random_state=seed)
        called[group.index] = cross_val_predict(tree, centred.to_frame(), group["label"] == "yes", cv=split)
    return called


def _detect(
    train: pd.DataFrame, train_patches: NDArray[np.float64], test: pd.DataFrame, patches: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether each test picture is called defective by the distance of its patches to normal ones."""
    called = np.zeros(len(test), dtype=bool)
    for (benchmark, category), group in test.groupby(["benchmark", "category"]):
        normal = train.index[(train["benchmark"] == benchmark) & (train["category"] == category)]
        own = group.index[group["label"] == "no"]
        reference = train_patches[normal] if len(normal) else patches[own]
        if len(reference) < NORMAL_NEEDED:
            continue
        held_out = np.empty(len(reference))
        for kept, held in KFold(_FOLDS).split(reference):
            held_out[held] = _oddness(reference[kept], reference[held])
        scores = pd.Series(_oddness(reference, patches[group.index]), index=group.index)
        if not len(normal):
            scores[own] = held_out
        called[group.index] = scores > np.percentile(held_out, 100 - _FALSE_ALARMS)
    return called


def _oddness(reference: NDArray[np.float64], pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean distance of each picture's three oddest patches to the nearest reference patch, columns scaled."""
    width = reference.shape[-1]
    scaler = StandardScaler().fit(reference.reshape(-1, width))
    nearest = NearestNeighbors(n_neighbors=1).fit(scaler.transform(reference.reshape(-1, width)))
    distances, _ = nearest.kneighbors(scaler.transform(pictures.reshape(-1, width)))
    return np.asarray(np.sort(distances.reshape(len(pictures), -1), axis=1)[:, -3:].mean(axis=1))
