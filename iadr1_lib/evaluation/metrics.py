"""Metrics of answers: each answer judged against the truth, and the shares of images per benchmark with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, recall_score, roc_auc_score

from iadr1_lib.answer import GRID, Label, category_of_words, cell_of_words, parse_answer, tidy
from iadr1_lib.data import says
from iadr1_lib.evaluation.intervals import DRAWS, Estimate, average, bootstrap_mean, estimate_table, label_means
from iadr1_lib.evaluation.parsers import PARSERS, read_answer

# The metrics that tables show, in their order, with their titles.
METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy_normal": "normal images accepted",
    "accuracy_defective": "defects found",
    "share_unparsed": "answers not readable",
    "share_yes": "share of Yes",
    "location": "location right",
    "type": "type right",
    "location_if_yes": "location right where Yes is said",
    "type_if_yes": "type right where Yes is said",
    "place_agrees": "reasoning and location tag agree",
    "type_agrees": "reasoning and type tag agree",
    "place_named": "true place named in the reasoning",
    "type_named": "true type named in the reasoning",
    "whole_sentences": "reasoning in sentences of the rule teacher",
    "auroc": "AUROC of P(Yes)",
}
_LABELS, _UNPARSED = ["no", "yes"], "unparsed"
_AT_ONCE = 100  # bootstrap draws of the curves held in memory at a time


def balanced_accuracy(labels: Iterable[str], answers: Iterable[str | None]) -> float:
    """Mean of the shares of normal and of defective images answered correctly, in percent; unparsed counts as wrong.

    NaN without images of both labels.
    """
    classes = [answer if isinstance(answer, str) else _UNPARSED for answer in answers]  # pandas may make None a NaN
    return float(100 * np.mean(recall_score(list(labels), classes, labels=_LABELS, average=None, zero_division=np.nan)))


def judge(predictions: pd.DataFrame, parser: str = "fair") -> pd.DataFrame:
    """Each prediction with what it was read as: columns answer, correct, location_right, type_right (0, 1 or NaN).

    `location_right` and `type_right` are NaN on normal images and where the truth is not known. On a defective image
    they are 1 only if the answer is yes and the tag names the true cell (whole words) or category (its name or a
    synonym). An unparsed answer (None) is wrong throughout. Cells are those of the 3×3 grid, or of the one that a
    column `grid` names.
    """
    judged = predictions.reset_index(drop=True).copy()
    judged["answer"] = answers_of(predictions, parser)
    judged["correct"] = (judged["answer"] == judged["label"]).astype(float)
    parsed = [parse_answer(raw) for raw in judged["raw"]]
    for tag, read in (("location", partial(cell_of_words, grid=grid_of(judged))), ("type", type_name)):
        judged[f"{tag}_right"] = [
            float(answer == "yes" and read(getattr(tags, tag) or "") == read(truth))
            if label == "yes" and isinstance(truth, str) and read(truth)
            else np.nan
            for truth, tags, answer, label in zip(judged[tag], parsed, judged["answer"], judged["label"], strict=True)
        ]
    return judged


def grid_of(predictions: pd.DataFrame) -> int:
    """Rows and columns of the grid of places: the paper's, or what the column `grid` says."""
    return int(predictions["grid"].iloc[0]) if "grid" in predictions else GRID


def answers_of(predictions: pd.DataFrame, parser: str) -> list[Label | None]:
    """What each prediction is read as; a refusal is no answer, whatever words it has ("No, I cannot ...")."""
    refused = _flagged(predictions, "refused")
    return [None if no else read_answer(raw, parser) for raw, no in zip(predictions["raw"], refused, strict=True)]


def _flagged(predictions: pd.DataFrame, key: str) -> NDArray[np.bool_]:
    """Which predictions carry a key that only some rows have at all, "refused" or "cut"."""
    values = predictions[key] if key in predictions else [None] * len(predictions)
    return np.array([pd.notna(value) and bool(value) for value in values], dtype=bool)


def type_name(text: str) -> str | None:
    """The category, or the text itself where the vocabulary lacks it ("glue" is right for "glue" alone).

    None for a word that only says that there is a defect ("bad"): as a truth it tells no type.
    """
    return category_of_words(text) or (None if says(text) == "bad" else tidy(text).strip(" .!")) or None


def unknown_types(predictions: pd.DataFrame) -> list[str]:
    """True types that are none of the vocabulary's words."""
    named = predictions["type"].dropna().unique()
    return sorted(kind for kind in named if category_of_words(kind) is None and type_name(kind))


def score(predictions: pd.DataFrame, parser: str = "fair", seed: int = 0) -> pd.DataFrame:
    """All metrics per benchmark and, in percent, their mean over benchmarks.

    Columns: benchmark, metric, value, low, high, n, unit, note. Metrics in percent: balanced_accuracy (mean
    of the next two, pooled over a benchmark's categories), accuracy_normal, accuracy_defective, share_yes,
    share_unparsed, location and type (of all defective images, those answered yes with the right tag), location_if_yes
    and type_if_yes (the same of the defective images answered yes: they do not rise with the share of yes);
    balanced_accuracy_by_category (mean over a benchmark's categories, images resampled within each), overkill
    (normal images called defective) and miss (defective ones called normal; what is unparsed is in neither).
    Counts: tp, fn, tn, fp, unparsed; where there are any, refused: the unparsed that a model behind an API would
    not answer, and cut: answers that the limit of length ended, read as far as they go. A metric that a benchmark
    cannot have (no normal images, say) is NaN and `note` says why; then so is its mean. An interval has no width
    where all images of a stratum agree: the bootstrap cannot see further.
    """
    judged = judge(predictions, parser)
    answers = judged["answer"]
    judged["is_yes"], judged["is_unparsed"] = answers == "yes", answers.isna()
    judged["wrong"] = answers.map({"yes": "no", "no": "yes"}) == judged["label"]
    rngs = [np.random.default_rng(key) for key in (seed, [seed, 1], [seed, 2])]
    shares = estimate_table(judged, lambda group: _shares(group, *rngs))
    counts = [
        {"benchmark": name, "metric": metric, "value": float(count), "n": len(group), "unit": "images", "note": ""}
        for name, group in judged.groupby("benchmark", sort=True)
        for metric, count in _counts(group).items()
    ]
    return pd.concat([shares, pd.DataFrame(counts)], ignore_index=True)


def _shares(
    group: pd.DataFrame, rng: np.random.Generator, more: np.random.Generator, latest: np.random.Generator
) -> dict[str, Estimate]:
    """The metrics of one benchmark that are shares of its images.

    What came later draws from a generator of its own, so that no interval of the others moved.
    """
    right = label_means(group, "correct", rng)
    shares = {"balanced_accuracy": average(right), "accuracy_normal": right[0], "accuracy_defective": right[1]}
    of_labels = [float((group["label"] == label).mean()) for label in _LABELS]
    for metric in ("yes", "unparsed"):
        shares[f"share_{metric}"] = average(label_means(group, f"is_{metric}", rng), of_labels)
    for tag in ("location", "type"):
        shares[tag] = bootstrap_mean(group[f"{tag}_right"], f"defective images with a {tag}", rng)
    overkill, miss = label_means(group, "wrong", more)
    by_category = [own for _, own in group.groupby("category", sort=True) if own["label"].nunique() == 2]
    accuracies = [average(label_means(own, "correct", more)) for own in by_category]
    averaged = average(accuracies) if accuracies else bootstrap_mean([], "category of both", more)
    shares |= {"balanced_accuracy_by_category": averaged, "overkill": overkill, "miss": miss}
    for tag in ("location", "type"):
        right_if_yes = group.loc[group["is_yes"], f"{tag}_right"]
        shares[f"{tag}_if_yes"] = bootstrap_mean(right_if_yes, f"defective images with a {tag} answered yes", latest)
    return shares


def _counts(group: pd.DataFrame) -> dict[str, int]:
    """Confusion counts with yes as the positive class; tp + fn + tn + fp + unparsed = images. Then other counts."""
    classes = group["answer"].astype(object).where(group["answer"].notna(), _UNPARSED)
    (tn, fp, _), (fn, tp, _), _ = confusion_matrix(group["label"], classes, labels=[*_LABELS, _UNPARSED])
    others = {key: count for key in ("refused", "cut") if (count := int(_flagged(group, key).sum()))}
    return {"tp": tp, "fn": fn, "tn": tn, "fp": fp, _UNPARSED: len(group) - tp - fn - tn - fp} | others


def parser_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per parser, in percent: balanced accuracy (mean of benchmarks), the points it moves away from `fair`,
    share unparsed, and the share of answers that it reads differently from `fair`."""
    read = {parser: np.array([a or _UNPARSED for a in answers_of(predictions, parser)]) for parser in PARSERS}
    benchmarks = predictions.groupby("benchmark", sort=False).indices.values()
    labels = predictions["label"].to_numpy()
    rows = {
        parser: {
            "balanced accuracy": float(np.mean([balanced_accuracy(labels[i], answers[i]) for i in benchmarks])),
            "unparsed": 100 * np.mean(answers == _UNPARSED),
            "read otherwise": 100 * np.mean(answers != read["fair"]),
        }
        for parser, answers in read.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("parser")
    accuracy = table["balanced accuracy"].astype(float)
    table.insert(1, "points against fair", accuracy - accuracy["fair"])
    return table


def ranking(predictions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How well P(Yes) orders the images, whatever was answered; table as from `score`.

    `auroc`, `average_precision` (chance level: the share of defective images) and `share_without_p_yes`: images whose
    output never got to a word have no P(Yes), stand in neither curve, and are counted here. Hence a high value beside a
    high share says little.
    """
    rng = np.random.default_rng(seed)

    def estimates(group: pd.DataFrame) -> dict[str, Estimate]:
        p_yes = group["p_yes"].to_numpy(np.float64)
        known = ~np.isnan(p_yes)
        curves = auc_estimates((group["label"] == "yes").to_numpy()[known], p_yes[known], rng)
        return curves | {"share_without_p_yes": bootstrap_mean(~known, "images", rng)}

    return estimate_table(predictions, estimates)


def auc_estimates(
    defective: NDArray[np.bool_], p_yes: NDArray[np.float64], rng: np.random.Generator
) -> dict[str, Estimate]:
    """`auroc` and `average_precision` of one set of images, all of which have a P(Yes)."""
    strata = {"normal": np.flatnonzero(~defective), "defective": np.flatnonzero(defective)}
    for word, rows in strata.items():
        if not len(rows):
            return dict.fromkeys(("auroc", "average_precision"), bootstrap_mean([], f"{word} images with P(Yes)", rng))
    draws = []
    for _ in range(0, DRAWS, _AT_ONCE):
        weights = np.zeros((_AT_ONCE, len(p_yes)))
        for rows in strata.values():
            weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=_AT_ONCE)
        draws.append(areas(defective, p_yes, weights))
    aurocs, precisions = np.concatenate(draws, axis=1)
    return {
        "auroc": Estimate(float(roc_auc_score(defective, p_yes)), aurocs, len(p_yes)),
        "average_precision": Estimate(float(average_precision_score(defective, p_yes)), precisions, len(p_yes)),
    }


def areas(
    defective: NDArray[np.bool_], p_yes: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC and average precision for many weightings at once: (2, draws), from weights of (draws, images).

    scikit-learn's values with `sample_weight` (a test compares them), at a fraction of the time of a call per draw.
    """
    order = np.argsort(-p_yes, kind="stable")
    last = np.append(np.flatnonzero(np.diff(p_yes[order])), len(p_yes) - 1)  # where each run of equal values ends
    true_positives, false_positives = (
        np.insert(np.cumsum(weights[:, order] * side, axis=1)[:, last], 0, 0.0, axis=1)
        for side in (defective[order], ~defective[order])
    )
    positives, negatives = true_positives[:, -1], false_positives[:, -1]
    auroc = np.trapezoid(true_positives, false_positives, axis=1) / (positives * negatives)
    called = np.maximum(true_positives + false_positives, np.finfo(float).tiny)[:, 1:]
    precision = (np.diff(true_positives, axis=1) * true_positives[:, 1:] / called).sum(axis=1) / positives
    return np.stack([auroc, precision])
