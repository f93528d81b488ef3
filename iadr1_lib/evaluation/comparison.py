"""Several models side by side: one table under one protocol, all pairs tested, and how much of a difference
the protocol alone explains."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import scoring

MARK = "†"  # on cells of another protocol than the first row's


def compare(
    predictions: Mapping[str, pd.DataFrame],
    mixed: bool = False,
    metric: str = "balanced_accuracy",
    parser: str | Mapping[str, str] = "fair",
    seed: int = 0,
) -> pd.DataFrame:
    """One row per model with its protocol and, per benchmark and for their mean, ``metric`` with its 95 % interval.

    ``parser`` may name one per model, as the protocol ``released`` does; a model that is read otherwise than the first
    counts as one of another protocol.

    Raises UserError where models answered other images, or under other protocols or parsers. With ``mixed`` the latter
    are let in and every cell of theirs carries a †.
    """
    if not predictions:
        raise UserError("there are no predictions to compare: name at least one file")
    parsers = {name: parser if isinstance(parser, str) else parser[name] for name in predictions}
    if not mixed:
        scoring.require_one_protocol(predictions)
        if len(set(parsers.values())) > 1:
            said = "; ".join(f"{name}: {chosen}" for name, chosen in parsers.items())
            raise UserError(f"answers are read by different parsers ({said}): read them alike, or say mixed=True")
    require_same_images(predictions)
    asked = {name: f"{_protocols(table)}, read {parsers[name]}" for name, table in predictions.items()}
    rows = {}
    for name, table in predictions.items():
        mark = f" {MARK}" if asked[name] != next(iter(asked.values())) else ""
        scores = scoring.score(table, parsers[name], seed)
        found = scores[scores["metric"] == metric].set_index("benchmark")
        if found.empty:
            raise ValueError(f"no metric is called {metric!r}; choose from {', '.join(scores['metric'].unique())}")
        rows[name] = {"protocol": asked[name]} | {key: _cell(row) + mark for key, row in found.iterrows()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _protocols(table: pd.DataFrame) -> str:
    return " and ".join(sorted(set(table["protocol"])))


def _cell(row: pd.Series) -> str:  # type: ignore[type-arg]
    if np.isnan(row["value"]):
        return "–"
    interval = "" if np.isnan(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]"
    return f"{row['value']:.1f}{interval}"


def require_same_images(predictions: Mapping[str, pd.DataFrame]) -> None:
    """UserError, with the first image that one model lacks, unless all answered the same images."""
    keys = {name: set(zip(table["benchmark"], table["image"], strict=True)) for name, table in predictions.items()}
    everything = set().union(*keys.values())
    for name, own in keys.items():
        if missing := sorted(everything - own):
            raise UserError(
                f"{name} lacks {len(missing)} images that others answered, the first is {missing[0][1]}: "
                "predict the same images with all models to compare them."
            )


def pairwise_tests(
    predictions: Mapping[str, pd.DataFrame], parser: str = "fair", seed: int = 0, mixed: bool = False
) -> pd.DataFrame:
    """All pairs of models on every benchmark: is one of them more often right?

    Columns: model, baseline, benchmark, value (difference of balanced accuracy in points), low, high (95 % paired
    stratified bootstrap), n, p (McNemar, exact) and p_holm: p corrected by Holm over all rows of the table, so that
    many comparisons do not make one of them significant by chance. McNemar counts images, so a benchmark of mostly
    normal ones weighs these more; the interval weighs the labels alike.

    Raises UserError as `scoring.paired_difference`.
    """
    rows = []
    for baseline, model in combinations(predictions, 2):
        for benchmark in sorted(set(predictions[model]["benchmark"]) | set(predictions[baseline]["benchmark"])):
            one, other = (
                table[table["benchmark"] == benchmark] for table in (predictions[model], predictions[baseline])
            )
            if one.empty or other.empty:
                raise UserError(f"only one of {model} and {baseline} has answers to {benchmark}: predict it with both")
            made = scoring.paired_difference(one, other, parser=parser, seed=seed, mixed=mixed)._asdict()
            p = made.pop("p_mcnemar")
            rows.append({"model": model, "baseline": baseline, "benchmark": benchmark, **made, "p": p})
    columns = ["model", "baseline", "benchmark", "value", "low", "high", "n", "p"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = multipletests(table["p"], method="holm")[1] if len(table) else table["p"]
    return table


class ProtocolShare(NamedTuple):
    """Balanced accuracies in percent (mean of benchmarks) and, with 95 % intervals, the share of the gain, in percent,
    that the protocol explains; NaN where there is no gain to explain."""

    base_released: float
    base_fair: float
    tuned_released: float
    share: float
    low: float
    high: float


def protocol_share(
    base_released: pd.DataFrame,
    base_fair: pd.DataFrame,
    tuned_released: pd.DataFrame,
    parsers: tuple[str, str, str],
    seed: int = 0,
) -> ProtocolShare:
    """How much of the released comparison's gain the base makes up by being asked and read fairly:

    (base fair − base released) / (tuned released − base released).

    ``parsers`` reads the three in the order of the arguments. In each bootstrap draw all three are judged on the same
    images. A draw without a gain has no share and is left out; where that is so for more than one in twenty, the
    interval is NaN, since the share is then anybody's guess. A share can exceed 100 (fair asking gains more than
    tuning) or be negative (it costs).

    Raises UserError if the images differ.
    """
    tables = {"base released": base_released, "base fair": base_fair, "tuned released": tuned_released}
    require_same_images(tables)
    keys = ["benchmark", "image", "label"]
    judged = [
        scoring.judge(table, parser).set_index(keys)["correct"].rename(name)
        for (name, table), parser in zip(tables.items(), parsers, strict=True)
    ]
    right = pd.concat(judged, axis=1).reset_index()
    rng = np.random.default_rng(seed)
    values, draws = _joint_balanced(right, list(tables), rng)
    share, drawn = _share(values), np.apply_along_axis(_share, 1, draws)
    sound = drawn[~np.isnan(drawn)]
    ends = np.percentile(sound, [2.5, 97.5]) if len(sound) >= 0.95 * len(drawn) else (np.nan, np.nan)
    return ProtocolShare(*(100 * float(number) for number in (*values, share, *ends)))


def _share(accuracies: NDArray[np.float64]) -> float:
    base_released, base_fair, tuned_released = accuracies
    gain = tuned_released - base_released
    return float((base_fair - base_released) / gain) if gain > 0 else np.nan


def _joint_balanced(
    right: pd.DataFrame, columns: list[str], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean balanced accuracy of each column, and its bootstrap draws (draws × columns), the rows drawn as wholes."""
    values, draws = np.zeros(len(columns)), np.zeros((scoring.DRAWS, len(columns)))
    benchmarks = right["benchmark"].nunique()
    for name, group in right.groupby("benchmark", sort=True):
        for label in ("no", "yes"):
            rows = group.loc[group["label"] == label, columns].to_numpy(float)
            if not len(rows):
                raise UserError(f"{name} has no pictures with the label {label}: balanced accuracy needs both")
            patterns, counts = np.unique(rows, axis=0, return_counts=True)
            drawn = rng.multinomial(len(rows), counts / len(rows), size=scoring.DRAWS)
            values += rows.mean(axis=0) / (2 * benchmarks)
            draws += drawn @ patterns / len(rows) / (2 * benchmarks)
    return values, draws
