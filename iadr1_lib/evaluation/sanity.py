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
from iadr1_lib.evaluation import scoring
from iadr1_lib.records import Sample

DOES_WELL = 60.0  # percent balanced accuracy, with an interval that lies above CHANCE
CHANCE = 50.0
NORMAL_NEEDED = 5  # normal pictures below which `scoring` lets its detector call nothing defective
TITLES = {name: name.replace("_", " ") for name in scoring.BASELINES}
_MEANS = {
    "file_size": "a model can score here by how well a file compresses, that is by how much texture or noise is in it",
    "mean_brightness": "a model can score here by how light or dark a picture is as a whole, without finding a defect",
    "classical_detector": "it measures how odd a picture's patches are; only what is above this figure speaks for "
    "understanding",
}
COLUMNS = ("benchmark", "baseline", "value", "low", "high", "n")
_SHOWN = 5  # pairs that a report names


def baselines(samples: Sequence[Sample], train: Sequence[Sample] = (), seed: int = 0) -> pd.DataFrame:
    """Balanced accuracy in percent of `scoring.BASELINES` on each benchmark's test pictures, with its 95 % interval.

    Columns COLUMNS, one row per benchmark and baseline. See `scoring.label_only_baselines` for what each one does. A
    benchmark without normal or without defective pictures has NaN, and so has the detector where no category has
    enough normal pictures to learn from. UserError for a picture that cannot be read.
    """
    found = scoring.label_only_baselines(train, samples, seed)
    found = found[found["benchmark"] != scoring.MEAN]
    found = found.assign(baseline=found["metric"].str.removesuffix("/balanced_accuracy"))
    found = found[list(COLUMNS)].reset_index(drop=True)
    untaught = {s.benchmark for s in samples} - _taught(samples, train)
    blind = (found["baseline"] == "classical_detector") & found["benchmark"].isin(untaught)
    found.loc[blind, ["value", "low", "high"]] = float("nan")
    return found


def _taught(samples: Sequence[Sample], train: Sequence[Sample]) -> set[str]:
    """Benchmarks of which some category has NORMAL_NEEDED normal pictures: training pictures, or else its own."""
    normal = [Counter((s.benchmark, s.category) for s in some if s.label == "no") for some in (train, samples)]
    asked = {(s.benchmark, s.category) for s in samples}
    return {kind[0] for kind in asked if (normal[0][kind] or normal[1][kind]) >= NORMAL_NEEDED}


def table(found: pd.DataFrame) -> pd.DataFrame:
    """`baselines` for the eye: one row per benchmark with pictures and "value [low, high]", a dash where undefined."""
    shown = {
        (row["benchmark"], TITLES[row["baseline"]]): _cell(row["value"], row["low"], row["high"])
        for row in found.to_dict("records")
    }
    sizes = found.groupby("benchmark", sort=False)["n"].first()
    return pd.DataFrame(
        [
            {"benchmark": name, "pictures": int(size), **{title: shown[name, title] for title in TITLES.values()}}
            for name, size in sizes.items()
        ]
    )


def _cell(value: float, low: float, high: float) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.1f}" if pd.isna(low) else f"{value:.1f} [{low:.0f}, {high:.0f}]"


def readings(found: pd.DataFrame) -> list[str]:
    """One sentence for each baseline that does well: DOES_WELL, with an interval, if there is one, above CHANCE."""
    well = found[(found["value"] >= DOES_WELL) & ~(found["low"] <= CHANCE)]
    return [
        f"{row['benchmark']}: {TITLES[row['baseline']]} alone reaches {_cell(row['value'], row['low'], row['high'])}: "
        f"{_MEANS[row['baseline']]}."
        for row in well.to_dict("records")
    ]


class Leak(NamedTuple):
    """A test picture that stands in training: paths, how it was found ("same file" or "nearly the same"), score."""

    train: str
    test: str
    how: str
    score: float


def leaks(train: Sequence[Sample], samples: Sequence[Sample]) -> list[Leak]:
    """Pairs of a training and a test picture that are the same file, or nearly the same picture.

    Near duplicates are found as `near_duplicates` says; a pair that is one file is told as such only.
    """
    same = [
        Leak(one, other, "same file", 1.0)
        for left, right in leakage(train, samples).values()
        for one in left
        for other in right
    ]
    told = {(leak.train, leak.test) for leak in same}
    near = [Leak(*pair[:2], "nearly the same", pair.score) for pair in near_duplicates(train, samples)]
    return same + [leak for leak in near if (leak.train, leak.test) not in told]


def duplicate_report(train: Sequence[Sample], samples: Sequence[Sample]) -> list[str]:
    """Lines for the reader: leaks of training into test, then pictures that stand in the test twice, counted."""
    lines = []
    if train:
        found = leaks(train, samples)
        files = sum(leak.how == "same file" for leak in found)
        lines.append(
            f"training ({len(train)}) against test ({len(samples)}): {files} pairs are the same file, "
            f"{len(found) - files} nearly the same picture"
        )
        lines += [f"  {leak.score:.2f}  {leak.test}  =  {leak.train}" for leak in found[:_SHOWN]]
    twice = near_duplicates(samples)
    labels = {sample.image: sample.label for sample in samples}
    other = sum(labels[pair.first] != labels[pair.second] for pair in twice)
    lines.append(f"within the test: {len(twice)} pairs are nearly the same picture, {other} of them with other labels")
    lines += [f"  {pair.score:.2f}  {pair.second}  =  {pair.first}" for pair in twice[:_SHOWN]]
    return lines


def metric_rows(found: pd.DataFrame) -> list[dict[str, Any]]:
    """`baselines` as rows for a metrics file, named sanity/<baseline>/<benchmark>; undefined values become None."""
    return [
        {
            "name": f"sanity/{row['baseline']}/{row['benchmark']}",
            **{key: None if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high")},
            "n": int(row["n"]),
            "unit": "%",
        }
        for row in found.to_dict("records")
    ]
