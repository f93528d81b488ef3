"""Estimates with 95 % intervals, tables of them, and their text.

Every metric is a share of images, in percent. Its interval is a stratified bootstrap: images are resampled within each
benchmark and label, DRAWS times, from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DRAWS = 2_000
MEAN = "mean"  # the row that averages the benchmarks, each with the same weight, as the paper's tables do
SEED_RANGE = "lowest and highest seed"  # the `interval` of a row over several seeds


class Estimate(NamedTuple):
    """A share from 0 to 1, the same in each bootstrap draw, (DRAWS,), and the number of images; NaN with a note why."""

    value: float
    draws: NDArray[np.float64]
    n: int
    note: str = ""


def bootstrap_mean(values: Any, what: str, rng: np.random.Generator) -> Estimate:
    """Mean of one stratum without its NaN values; `what` names the images for the note."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if not len(known):
        return Estimate(np.nan, np.full(DRAWS, np.nan), 0, f"no {what}")
    # How often a resample draws each distinct value is multinomial: one call gives the bootstrap's distribution.
    distinct, counts = np.unique(known, return_counts=True)
    drawn = rng.multinomial(len(known), counts / len(known), size=DRAWS)
    return Estimate(float(known.mean()), drawn @ distinct / len(known), len(known))


def average(parts: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """Weighted mean of independent strata, by default with equal weights; undefined if one that has a weight is."""
    weighted = [(w, part) for w, part in zip(weights or [1 / len(parts)] * len(parts), parts, strict=True) if w]
    value = sum(weight * part.value for weight, part in weighted)
    draws = np.sum([weight * part.draws for weight, part in weighted], axis=0)
    note = next((part.note for _, part in weighted if part.note), "")
    return Estimate(float(value), draws, sum(part.n for _, part in weighted), note)


def benchmark_mean(estimates: Mapping[str, Estimate]) -> Estimate:
    """Mean over benchmarks, each with the same weight; undefined if one of them is, so that means stay comparable."""
    return average([e._replace(note=f"{name}: {e.note}" if e.note else "") for name, e in estimates.items()])


def label_means(group: pd.DataFrame, column: str, rng: np.random.Generator) -> list[Estimate]:
    """Mean of a column over the normal ("no") and over the defective ("yes") images, in this order."""
    labels = (("no", "normal"), ("yes", "defective"))
    return [bootstrap_mean(group.loc[group["label"] == label, column], f"{word} images", rng) for label, word in labels]


def percent(estimate: Estimate) -> dict[str, float]:
    """Value, low and high (2.5th and 97.5th percentile) in percent."""
    low, high = np.percentile(estimate.draws, [2.5, 97.5])
    return {"value": 100 * estimate.value, "low": 100 * float(low), "high": 100 * float(high)}


def estimate_table(table: pd.DataFrame, estimate: Callable[[pd.DataFrame], Mapping[str, Estimate]]) -> pd.DataFrame:
    """`estimate` of each benchmark's rows, and their MEAN: benchmark, metric, value, low, high, n, unit, note."""
    by_benchmark = {str(name): estimate(group) for name, group in table.groupby("benchmark", sort=True)}
    metrics = next(iter(by_benchmark.values()))
    means = {metric: benchmark_mean({name: own[metric] for name, own in by_benchmark.items()}) for metric in metrics}
    return pd.DataFrame(
        {"benchmark": name, "metric": metric, **percent(own), "n": own.n, "unit": "%", "note": own.note}
        for name, estimates in [*by_benchmark.items(), (MEAN, means)]
        for metric, own in estimates.items()
    )


def mean_table(table: pd.DataFrame, columns: Sequence[str], what: str, seed: int) -> pd.DataFrame:
    """`estimate_table` of the means of these columns, whose NaN values are left out; `what` names the images."""
    rng = np.random.default_rng(seed)
    return estimate_table(table, lambda group: {name: bootstrap_mean(group[name], what, rng) for name in columns})


def metric_rows(table: pd.DataFrame, prefix: str) -> list[dict[str, Any]]:
    """A table such as `score` returns as rows for metrics.json, named as "sc_grpo/balanced_accuracy/mean" with
    `prefix` at the beginning; undefined values become None."""
    return [
        {
            "name": f"{prefix}/{row['metric']}/{row['benchmark']}",
            **{key: None if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high")},
            "n": int(row["n"]),
            "unit": row["unit"],
        }
        for row in table.to_dict("records")
    ]


def interval_text(row: Mapping[Any, Any] | None, signed: bool = False) -> str:
    """A value with its interval as text, such as "57.2 [51.0, 63.1]"; a dash where there is no value.

    Square brackets hold a 95 % interval. Round ones, "57.2 (51.0 to 63.1)", hold the lowest and the highest seed, for
    a `row` whose `interval` is SEED_RANGE. An interval without width is not printed. With `signed` every number has its
    sign, as differences need it: "+2.1 [−0.4, +4.6]".
    """
    if row is None or pd.isna(row["value"]):
        return "–"
    number = "+.1f" if signed else ".1f"
    ends = [format(row[end], number) for end in ("low", "high") if not pd.isna(row[end])]
    text = format(row["value"], number)
    if len(set(ends)) == 2:
        text += (" ({} to {})" if row.get("interval") == SEED_RANGE else " [{}, {}]").format(*ends)
    return text.replace("-", "−") if signed else text
