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
    """A share from 0 to 1.

    Attributes:
        value: the share; NaN where it is undefined.
        draws: the same share in each bootstrap draw, (DRAWS,).
        n: number of images.
        note: why it is undefined, or "".
    """

    value: float
    draws: NDArray[np.float64]
    n: int
    note: str = ""


def bootstrap_mean(values: Sequence[float] | NDArray[Any], what: str, rng: np.random.Generator) -> Estimate:
    """Mean of one stratum with its bootstrap draws; NaN values are left out. `what` names the images for the note.

    A resampled mean depends only on how often each distinct value is drawn, and those counts are multinomial: one call
    per stratum gives exactly the bootstrap's distribution.
    """
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if not len(known):
        return Estimate(np.nan, np.full(DRAWS, np.nan), 0, f"no {what}")
    distinct, counts = np.unique(known, return_counts=True)
    drawn = rng.multinomial(len(known), counts / len(known), size=DRAWS)
    return Estimate(float(known.mean()), drawn @ distinct / len(known), len(known))


def weighted_sum(parts: Sequence[tuple[float, Estimate]]) -> Estimate:
    """Weighted sum of independent strata; undefined, with the reason, if one of them is."""
    parts = [(weight, part) for weight, part in parts if weight]
    value = sum(weight * part.value for weight, part in parts)
    draws = np.sum([weight * part.draws for weight, part in parts], axis=0)
    note = next((part.note for _, part in parts if part.note), "")
    return Estimate(float(value), draws, sum(part.n for _, part in parts), note)


def benchmark_mean(estimates: Mapping[str, Estimate]) -> Estimate:
    """Mean over benchmarks, each with the same weight; undefined if one of them is, so that means stay comparable."""
    noted = [e._replace(note=f"{name}: {e.note}" if e.note else "") for name, e in estimates.items()]
    return weighted_sum([(1 / len(noted), estimate) for estimate in noted])


def label_means(group: pd.DataFrame, column: str, rng: np.random.Generator) -> dict[str, Estimate]:
    """Mean of a column over the normal ("no") and over the defective ("yes") images."""
    return {
        label: bootstrap_mean(group.loc[group["label"] == label, column].to_numpy(float), f"{word} images", rng)
        for label, word in (("no", "normal"), ("yes", "defective"))
    }


def mean_of_labels(means: Mapping[str, Estimate]) -> Estimate:
    """Mean of both labels' estimates with equal weights: of accuracies, the balanced accuracy."""
    return weighted_sum([(0.5, means["no"]), (0.5, means["yes"])])


def percent(estimate: Estimate) -> dict[str, float]:
    """Value, low and high (2.5th and 97.5th percentile) in percent."""
    low, high = np.percentile(estimate.draws, [2.5, 97.5])
    return {"value": 100 * estimate.value, "low": 100 * float(low), "high": 100 * float(high)}


def estimate_rows(
    table: pd.DataFrame, estimate: Callable[[pd.DataFrame], Mapping[str, Estimate]]
) -> list[dict[str, Any]]:
    """Rows benchmark, metric, value, low, high, n, unit, note: `estimate` of each benchmark's rows, and their MEAN."""
    found = {str(name): estimate(group) for name, group in table.groupby("benchmark", sort=True)}
    metrics = next(iter(found.values()))
    means = {metric: benchmark_mean({name: own[metric] for name, own in found.items()}) for metric in metrics}
    return [
        {"benchmark": name, "metric": metric, **percent(own), "n": own.n, "unit": "%", "note": own.note}
        for name, estimates in [*found.items(), (MEAN, means)]
        for metric, own in estimates.items()
    ]


def mean_rows(table: pd.DataFrame, columns: Sequence[str], what: str, seed: int) -> list[dict[str, Any]]:
    """`estimate_rows` of the means of these columns, whose NaN values are left out; `what` names the images."""
    rng = np.random.default_rng(seed)
    return estimate_rows(
        table, lambda group: {name: bootstrap_mean(group[name].to_numpy(float), what, rng) for name in columns}
    )


def metric_rows(table: pd.DataFrame, prefix: str) -> list[dict[str, Any]]:
    """A table such as `score` returns as rows for metrics.json.

    Names are `prefix/metric/benchmark`, as "sc_grpo/balanced_accuracy/mean"; undefined values become None.
    """
    return [
        {
            "name": f"{prefix}/{row['metric']}/{row['benchmark']}",
            **{key: None if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high")},
            "n": int(row["n"]),
            "unit": row["unit"],
        }
        for row in table.to_dict("records")
    ]


def interval_text(row: Mapping[Any, Any] | None, signed: bool = False, decimals: int = 1) -> str:
    """A value with its interval as text, such as "57.2 [51.0, 63.1]"; a dash where there is no value.

    Square brackets hold a 95 % interval. Round ones, "57.2 (51.0 to 63.1)", hold the lowest and the highest seed, for
    a row whose `interval` is SEED_RANGE. An interval without width is not printed.

    Args:
        row: keys value, low and high, of which any may be None or NaN, and possibly interval.
        signed: print every number with its sign, as differences need it: "+2.1 [−0.4, +4.6]".
        decimals: digits after the point.
    """
    if row is None or pd.isna(row["value"]):
        return "–"
    number = f"{'+' if signed else ''}.{decimals}f"
    ends = [format(row[end], number) for end in ("low", "high") if not pd.isna(row[end])]
    text = format(row["value"], number)
    if len(set(ends)) == 2:
        text += (" ({} to {})" if row.get("interval") == SEED_RANGE else " [{}, {}]").format(*ends)
    return text.replace("-", "−") if signed else text
