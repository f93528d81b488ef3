"""What a benchmark measures before any model has looked: simple predictors, copies between training and test.

table = baselines(samples, train)      # benchmark x baseline with interval
readings(table)                        # what a benchmark measures where a simple predictor does well
leaks(train, samples)                  # training pictures among the test pictures, by file and by picture
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from iadr1_lib.data import leakage, near_duplicates
from iadr1_lib.evaluation import intervals
from iadr1_lib.evaluation.intervals import MEAN, interval_text
from iadr1_lib.evaluation.simple_predictors import BASELINES, NORMAL_NEEDED, label_only_baselines
from iadr1_lib.records import Sample

DOES_WELL = 60.0  # percent balanced accuracy, with an interval that lies above CHANCE
CHANCE = 50.0
TITLES = {name: name.replace("_", " ") for name in BASELINES}
_MEANS = {
    "file_size": "a model can score here by how well a file compresses, that is by how much texture or noise is in it",
    "mean_brightness": "a model can score here by how light or dark a picture is as a whole, without finding a defect",
    "classical_detector": "it measures how odd a picture's patches are; only what is above this figure speaks for "
    "understanding",
}
COLUMNS = ("benchmark", "baseline", "value", "low", "high", "n")
_SHOWN = 5  # pairs that a report names


def baselines(samples: Sequence[Sample], train: Sequence[Sample] = (), seed: int = 0) -> pd.DataFrame:
    """Balanced accuracy in percent of BASELINES on each benchmark's test pictures, with its 95 % interval.

    Columns COLUMNS, one row per benchmark and baseline. See `label_only_baselines` for what each one does. A
    benchmark without normal or without defective pictures has NaN, and so has the detector where no category has
    NORMAL_NEEDED normal pictures to learn from: training pictures, or else its own. UserError for a picture that
    cannot be read.
    """
    table = label_only_baselines(train, samples, seed)
    table = table.assign(baseline=table["metric"].str.removesuffix("/balanced_accuracy"))
    table = table.loc[table["benchmark"] != MEAN, list(COLUMNS)].reset_index(drop=True)
    normal = [Counter((s.benchmark, s.category) for s in some if s.label == "no") for some in (train, samples)]
    kinds = {(s.benchmark, s.category) for s in samples}
    taught = {kind[0] for kind in kinds if (normal[0][kind] or normal[1][kind]) >= NORMAL_NEEDED}
    untaught = (table["baseline"] == "classical_detector") & ~table["benchmark"].isin(taught)
    table.loc[untaught, ["value", "low", "high"]] = float("nan")
    return table


def table(found: pd.DataFrame) -> pd.DataFrame:
    """`baselines` for the eye: one row per benchmark with pictures and "value [low, high]", a dash where undefined."""
    rows = [
        {"benchmark": name, "pictures": int(group["n"].iloc[0])}
        | {TITLES[row["baseline"]]: interval_text(row) for row in group.to_dict("records")}
        for name, group in found.groupby("benchmark", sort=False)
    ]
    return pd.DataFrame(rows)


def readings(found: pd.DataFrame) -> list[str]:
    """One sentence for each baseline that does well: DOES_WELL, with an interval, if there is one, above CHANCE."""
    well = found[(found["value"] >= DOES_WELL) & ~(found["low"] <= CHANCE)]
    return [
        f"{row['benchmark']}: {TITLES[row['baseline']]} alone reaches {interval_text(row)}: {_MEANS[row['baseline']]}."
        for row in well.to_dict("records")
    ]


def metric_rows(found: pd.DataFrame) -> list[dict[str, Any]]:
    """`baselines` as rows for a metrics file, named sanity/<baseline>/<benchmark>; undefined values become None."""
    return intervals.metric_rows(found.assign(metric=found["baseline"], unit="%"), "sanity")


class Leak(NamedTuple):
    """A test picture that stands in training: paths, how it was detected ("same file", "nearly the same"), score."""

    train: str
    test: str
    how: str
    score: float


def leaks(train: Sequence[Sample], samples: Sequence[Sample]) -> list[Leak]:
    """Pairs of a training and a test picture that are the same file, or nearly the same picture (`near_duplicates`)."""
    same = [(a, b) for left, right in leakage(train, samples).values() for a in left for b in right]
    near = [Leak(*pair[:2], "nearly the same", pair.score) for pair in near_duplicates(train, samples)]
    return [Leak(*pair, "same file", 1.0) for pair in same] + [leak for leak in near if leak[:2] not in same]


def duplicate_report(train: Sequence[Sample], samples: Sequence[Sample]) -> list[str]:
    """Lines for the reader: leaks of training into test, then pictures that stand in the test twice, counted."""
    lines = []
    if train:
        pairs = leaks(train, samples)
        files = sum(leak.how == "same file" for leak in pairs)
        lines.append(
            f"training ({len(train)}) against test ({len(samples)}): {files} pairs are the same file, "
            f"{len(pairs) - files} nearly the same picture"
        )
        lines += [f"  {leak.score:.2f}  {leak.test}  =  {leak.train}" for leak in pairs[:_SHOWN]]
    twice = near_duplicates(samples)
    labels = {sample.image: sample.label for sample in samples}
    other = sum(labels[pair.first] != labels[pair.second] for pair in twice)
    lines.append(f"within the test: {len(twice)} pairs are nearly the same picture, {other} of them with other labels")
    lines += [f"  {pair.score:.2f}  {pair.second}  =  {pair.first}" for pair in twice[:_SHOWN]]
    return lines
