"""What a benchmark measures before any model has looked: simple predictors, copies between training and test.

Two of the predictors are constant, two look at no defect (file size, brightness), one is a classical detector of odd
patches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from iadr1_lib.data import leakage, near_duplicates, open_image
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation.intervals import MEAN, Estimate, average, estimate_table, interval_text, label_means
from iadr1_lib.records import Sample

BASELINES = ("always_yes", "always_no", "file_size", "mean_brightness", "classical_detector")
DOES_WELL = 60.0  # percent balanced accuracy, with an interval that lies above CHANCE
CHANCE = 50.0
_MEANS = {
    "file_size": "a model can score here by how well a file compresses, that is by how much texture or noise is in it",
    "mean_brightness": "a model can score here by how light or dark a picture is as a whole, without finding a defect",
    "classical_detector": "it measures how odd a picture's patches are; only what is above this figure speaks for "
    "understanding",
}
_SHOWN = 5  # pairs that a report names
NORMAL_NEEDED = 5  # normal pictures of a category below which the detector calls nothing defective
_SIDE = 96  # pixels; the detector reduces every picture to this
_PATCH = 12  # pixels, so 8 × 8 patches
FALSE_ALARMS = 10  # percent of normal pictures that the detector may reject
_FOLDS = 5


def baselines(samples: Sequence[Sample], train: Sequence[Sample] = (), seed: int = 0) -> pd.DataFrame:
    """`label_only_baselines` of each benchmark, without the mean, and with the predictor's name as baseline and metric.

    A benchmark without normal or without defective pictures has NaN, and so has the detector where no category has
    enough normal pictures to learn from: training pictures, or else its own. UserError as there.
    """
    table = label_only_baselines(train, samples, seed)
    table = table[table["benchmark"] != MEAN].reset_index(drop=True)
    table["baseline"] = table["metric"] = table["metric"].str.removesuffix("/balanced_accuracy")
    normal = [Counter((s.benchmark, s.category) for s in some if s.label == "no") for some in (train, samples)]
    kinds = {(sample.benchmark, sample.category) for sample in samples}
    taught = {kind[0] for kind in kinds if (normal[0][kind] or normal[1][kind]) >= NORMAL_NEEDED}
    untaught = (table["baseline"] == "classical_detector") & ~table["benchmark"].isin(taught)
    table.loc[untaught, ["value", "low", "high"]] = np.nan
    return table


def table(results: pd.DataFrame) -> pd.DataFrame:
    """`baselines` for the eye: one row per benchmark with pictures and "value [low, high]", a dash where undefined."""
    return pd.DataFrame(
        {"benchmark": name, "pictures": int(group["n"].iloc[0])}
        | {row["baseline"].replace("_", " "): interval_text(row) for row in group.to_dict("records")}
        for name, group in results.groupby("benchmark", sort=False)
    )


def readings(results: pd.DataFrame) -> list[str]:
    """One sentence for each baseline that does well: DOES_WELL, with an interval, if there is one, above CHANCE."""
    well = results[(results["value"] >= DOES_WELL) & ~(results["low"] <= CHANCE)]
    return [
        f"{row['benchmark']}: {row['baseline'].replace('_', ' ')} alone reaches {interval_text(row)}: "
        f"{_MEANS[row['baseline']]}."
        for row in well.to_dict("records")
    ]


def duplicate_report(train: Sequence[Sample], samples: Sequence[Sample]) -> list[str]:
    """Lines for the reader: training pictures among the test pictures, as the same file or nearly the same picture
    (`near_duplicates`), then pictures that stand in the test twice, counted."""
    lines = []
    if train:
        same = [(a, b, 1.0) for left, right in leakage(train, samples).values() for a in left for b in right]
        near = [pair for pair in near_duplicates(train, samples) if (*pair[:2], 1.0) not in same]
        lines.append(
            f"training ({len(train)}) against test ({len(samples)}): {len(same)} pairs are the same file, "
            f"{len(near)} nearly the same picture"
        )
        lines += [f"  {alike:.2f}  {test}  =  {trained}" for trained, test, alike in [*same, *near][:_SHOWN]]
    twice = near_duplicates(samples)
    labels = {sample.image: sample.label for sample in samples}
    other = sum(labels[pair.first] != labels[pair.second] for pair in twice)
    lines.append(f"within the test: {len(twice)} pairs are nearly the same picture, {other} of them with other labels")
    lines += [f"  {pair.score:.2f}  {pair.second}  =  {pair.first}" for pair in twice[:_SHOWN]]
    return lines


# ---------------------------------------------------------------------------------------------- the predictors


def label_only_baselines(train: Sequence[Sample], test: Sequence[Sample], seed: int = 0) -> pd.DataFrame:
    """Balanced accuracy of BASELINES on `test`; table as from `score`, metrics "always_yes/balanced_accuracy" …

    File size and mean brightness are fair attempts at cheating: each, less its category's median, goes into a
    shallow decision tree (two cuts, so bands too) that is fitted on the benchmark's own labels, 5-fold
    cross-fitted. The classical detector compares patches (colour, spread, edge strength in four directions)
    with those of the category's normal `train` pictures: an image's score is the distance of its oddest
    patches to their nearest neighbours, and one above the 90th percentile of held-out normal pictures is
    called defective. Where a category has no normal train picture, its normal test pictures serve, each
    judged by the others of its folds. UserError if a picture cannot be read or there is none.
    """
    if not test:
        raise UserError("There are no test pictures to measure the baselines on: check the data folder.")
    frame, normal = _frame(test), [sample for sample in train if sample.label == "no"]
    patches, frame["mean_brightness"] = _describe(test)
    frame["file_size"] = [float(Path(sample.image).stat().st_size) for sample in test]
    called = {"always_yes": np.ones(len(frame), bool), "always_no": np.zeros(len(frame), bool)}
    called |= {feature: _tree(frame, feature, seed) for feature in ("file_size", "mean_brightness")}
    called["classical_detector"] = _detect(_frame(normal), _describe(normal)[0], frame, patches)
    rng = np.random.default_rng(seed)

    def accuracies(group: pd.DataFrame) -> dict[str, Estimate]:
        defective = group["label"] == "yes"
        right = {name: group.assign(right=called[name][group.index] == defective) for name in BASELINES}
        return {f"{name}/balanced_accuracy": average(label_means(own, "right", rng)) for name, own in right.items()}

    return estimate_table(frame, accuracies)


def _frame(samples: Sequence[Sample]) -> pd.DataFrame:
    return pd.DataFrame([asdict(sample) for sample in samples], columns=[field.name for field in fields(Sample)])


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
        folds = min(_FOLDS, *((group["label"] == label).sum() for label in ("no", "yes")))
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
        called[group.index] = scores > np.percentile(held_out, 100 - FALSE_ALARMS)
    return called


def _oddness(reference: NDArray[np.float64], pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean distance of each picture's three oddest patches to the nearest reference patch, columns scaled."""
    width = reference.shape[-1]
    scaler = StandardScaler().fit(reference.reshape(-1, width))
    nearest = NearestNeighbors(n_neighbors=1).fit(scaler.transform(reference.reshape(-1, width)))
    distances, _ = nearest.kneighbors(scaler.transform(pictures.reshape(-1, width)))
    return np.asarray(np.sort(distances.reshape(len(pictures), -1), axis=1)[:, -3:].mean(axis=1))
