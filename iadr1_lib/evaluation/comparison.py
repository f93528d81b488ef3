"""Models side by side: paired differences, tests of all pairs, one table under one protocol, and how much of a
difference the protocol alone explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import intervals
from iadr1_lib.evaluation.intervals import DRAWS, Estimate, average, interval_text
from iadr1_lib.evaluation.metrics import judge, score

MARK = "†"  # on cells of another protocol than the first row's
_COLUMN_OF_METRIC = {"balanced_accuracy": "correct", "location": "location_right", "type": "type_right"}
PAIRED = tuple(_COLUMN_OF_METRIC)  # metrics that can be compared image by image
_KEYS = ["benchmark", "image", "label"]


def require_one_protocol(predictions: Mapping[str, pd.DataFrame]) -> str:
    """The protocol of all these predictions; UserError naming who was asked how if there are several."""
    if len(protocols := {str(name) for table in predictions.values() for name in table["protocol"]}) == 1:
        return protocols.pop()
    who = "; ".join(f"{name}: {_protocols(table)}" for name, table in predictions.items())
    raise UserError(
        f"models were asked under different protocols ({who}): a difference could come from the asking. Ask them "
        "alike, or say mixed=True where the table is to show just that."
    )


def _protocols(table: pd.DataFrame) -> str:
    return " and ".join(sorted(set(table["protocol"])))


def require_same_images(predictions: Mapping[str, pd.DataFrame]) -> None:
    """UserError, with the first image that one model lacks, unless all answered the same images, labelled alike."""
    images = {name: set(table[_KEYS].itertuples(index=False, name=None)) for name, table in predictions.items()}
    for name, own in images.items():
        if missing := sorted(set().union(*images.values()) - own):
            raise UserError(
                f"{name} lacks {len(missing)} images that others answered, the first is {missing[0][1]}: "
                "predict the same images with all models to compare them."
            )


def _side_by_side(tables: Mapping[str, pd.DataFrame], parsers: Sequence[str], column: str) -> pd.DataFrame:
    """Columns benchmark, image, label, and a column of `judge` for each of the tables, which hold the same images."""
    require_same_images(tables)
    judged = [judge(t, parser).set_index(_KEYS)[column] for t, parser in zip(tables.values(), parsers, strict=True)]
    return pd.DataFrame(dict(zip(tables, judged, strict=True))).reset_index()


class PairedDifference(NamedTuple):
    """Model minus baseline in percentage points, its 95 % interval, the images, McNemar's exact p."""

    value: float
    low: float
    high: float
    n: int
    p_mcnemar: float


def paired_difference(
    model: pd.DataFrame | Sequence[pd.DataFrame],
    baseline: pd.DataFrame | Sequence[pd.DataFrame],
    metric: str = "balanced_accuracy",
    parser: str = "fair",
    seed: int = 0,
) -> PairedDifference:
    """How much better `model` is than `baseline` on the same images, as the mean over benchmarks.

    Pairs stay together in the bootstrap: an image is resampled with both models' answers to it. Lists give one
    pair of predictions per training seed: images are resampled within each seed, and the seeds' differences
    averaged (so the interval speaks of images, for these seeds). `metric` is one of PAIRED. McNemar's exact test counts
    the images that only one of the two gets right. UserError if the images or the protocols differ.
    """
    if metric not in PAIRED:
        raise ValueError(f"no paired metric is called {metric!r}; choose from {', '.join(PAIRED)}")
    models, baselines = ([given] if isinstance(given, pd.DataFrame) else list(given) for given in (model, baseline))
    require_one_protocol({"model": pd.concat(models), "baseline": pd.concat(baselines)})
    pairs = [
        _side_by_side({"model": a, "baseline": b}, (parser, parser), _COLUMN_OF_METRIC[metric]).dropna()
        for a, b in zip(models, baselines, strict=True)
    ]
    rng = np.random.default_rng(seed)
    mean = average([_mean_difference(pair, rng, metric) for pair in pairs])
    right, before = ((pd.concat(pairs)[column] == 1).to_numpy() for column in ("model", "baseline"))
    counts = [[int((a & b).sum()) for b in (before, ~before)] for a in (right, ~right)]
    return PairedDifference(**intervals.percent(mean), n=mean.n, p_mcnemar=float(mcnemar(counts, exact=True).pvalue))


def _mean_difference(pair: pd.DataFrame, rng: np.random.Generator, metric: str) -> Estimate:
    pair = pair.assign(difference=pair["model"] - pair["baseline"])
    differences = {}
    for name, group in pair.groupby("benchmark", sort=True):
        normal, defective = intervals.label_means(group, "difference", rng)
        differences[str(name)] = average([normal, defective]) if metric == "balanced_accuracy" else defective
    if not differences:
        return intervals.bootstrap_mean([], "images with a known truth", rng)
    return intervals.benchmark_mean(differences)


def pairwise_tests(predictions: Mapping[str, pd.DataFrame], parser: str = "fair", seed: int = 0) -> pd.DataFrame:
    """All pairs of models on every benchmark: is one of them more often right?

    Columns: model, baseline, benchmark, value (difference of balanced accuracy in points), low, high (95 % paired
    stratified bootstrap), n, p (McNemar, exact) and p_holm: p corrected by Holm over all rows of the table, so that
    many comparisons do not make one of them significant by chance. McNemar counts images, so a benchmark of mostly
    normal ones weighs these more; the interval weighs the labels alike. UserError as from `paired_difference`.
    """
    from statsmodels.stats.multitest import multipletests  # takes half a second

    require_same_images(predictions)
    groups = {name: dict(iter(table.groupby("benchmark", sort=True))) for name, table in predictions.items()}
    rows = [
        (model, baseline, name, *paired_difference(group, groups[baseline][name], parser=parser, seed=seed))
        for baseline, model in combinations(predictions, 2)
        for name, group in groups[model].items()
    ]
    table = pd.DataFrame(rows, columns=["model", "baseline", "benchmark", "value", "low", "high", "n", "p"])
    table["p_holm"] = multipletests(table["p"], method="holm")[1] if len(table) else table["p"]
    return table


def compare(
    predictions: Mapping[str, pd.DataFrame],
    mixed: bool = False,
    parser: str | Mapping[str, str] = "fair",
    seed: int = 0,
) -> pd.DataFrame:
    """One row per model: its protocol and, per benchmark and for their mean, balanced accuracy with 95 % interval.

    `parser` may name one per model, as the protocol `released` does. UserError where models answered other images, or
    under other protocols or parsers than the first; with `mixed` the latter are let in and each of their cells carries
    a †.
    """
    if not predictions:
        raise UserError("there are no predictions to compare: name at least one file")
    parsers = dict.fromkeys(predictions, parser) if isinstance(parser, str) else parser
    if not mixed:
        require_one_protocol(predictions)
        if len({parsers[name] for name in predictions}) > 1:
            raise UserError(f"answers are read by different parsers ({parsers}): read them alike, or say mixed=True")
    require_same_images(predictions)
    rows: dict[str, dict[str, str]] = {}
    for name, table in predictions.items():
        rows[name] = {"protocol": f"{_protocols(table)}, read {parsers[name]}"}
        mark = f" {MARK}" if rows[name]["protocol"] != next(iter(rows.values()))["protocol"] else ""
        scores = score(table, parsers[name], seed).query("metric == 'balanced_accuracy'")
        rows[name] |= {row["benchmark"]: interval_text(row) + mark for row in scores.to_dict("records")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


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

    (base fair − base released) / (tuned released − base released), which can exceed 100 % (fair asking gains more than
    tuning) or be negative (it costs). `parsers` reads the three in the order of the arguments. In each bootstrap draw
    all three are judged on the same images. A draw without a gain has no share and is left out; where that is so for
    more than one in twenty, the interval is NaN. UserError if the images differ or a benchmark lacks a label.
    """
    tables = {"base released": base_released, "base fair": base_fair, "tuned released": tuned_released}
    right = _side_by_side(tables, parsers, "correct")
    rng = np.random.default_rng(seed)
    accuracies = np.zeros((1 + DRAWS, 3))  # the measured ones, then those of each draw
    benchmarks = sorted(right["benchmark"].unique())
    for name, label in product(benchmarks, ("no", "yes")):
        rows = right.loc[(right["benchmark"] == name) & (right["label"] == label), list(tables)].to_numpy(float)
        if not len(rows):
            raise UserError(f"{name} has no pictures with the label {label}: balanced accuracy needs both")
        patterns, counts = np.unique(rows, axis=0, return_counts=True)
        drawn = rng.multinomial(len(rows), counts / len(rows), size=DRAWS) @ patterns / len(rows)
        accuracies += np.vstack([rows.mean(axis=0), drawn]) / (2 * len(benchmarks))
    released, fair, tuned = accuracies.T
    gain = tuned - released
    shares = np.divide(fair - released, gain, out=np.full(len(gain), np.nan), where=gain > 0)
    enough = np.isnan(shares[1:]).mean() <= 0.05
    ends = np.nanpercentile(shares[1:], [2.5, 97.5]) if enough else (np.nan, np.nan)
    return ProtocolShare(*(100 * float(number) for number in (*accuracies[0], shares[0], *ends)))
