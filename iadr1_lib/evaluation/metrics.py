"""Metrics of answers: each answer judged against the truth, and the shares of images per benchmark with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, recall_score

from iadr1_lib.answer import GRID, Label, category_of_words, cell_of_words, parse_answer, tidy
from iadr1_lib.data import says
from iadr1_lib.evaluation.intervals import (
    Estimate,
    bootstrap_mean,
    estimate_rows,
    label_means,
    mean_of_labels,
    weighted_sum,
)
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
    "place_agrees": "reasoning and location tag agree",
    "type_agrees": "reasoning and type tag agree",
    "auroc": "AUROC of P(Yes)",
}
_LABELS, _UNPARSED = ["no", "yes"], "unparsed"


def balanced_accuracy(labels: Sequence[str], answers: Sequence[str | None]) -> float:
    """Mean of the shares of normal and of defective images answered correctly, in percent; unparsed counts as wrong.

    NaN without images of both labels.
    """
    classes = [answer or _UNPARSED for answer in answers]
    return float(100 * np.mean(recall_score(labels, classes, labels=_LABELS, average=None, zero_division=np.nan)))


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
        truths = judged[tag] if tag in judged else [None] * len(judged)
        judged[f"{tag}_right"] = [
            float(answer == "yes" and read(getattr(tags, tag) or "") == read(truth))
            if label == "yes" and isinstance(truth, str) and read(truth)
            else np.nan
            for truth, tags, answer, label in zip(truths, parsed, judged["answer"], judged["label"], strict=True)
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
    if key not in predictions:
        return np.zeros(len(predictions), dtype=bool)
    return np.array([pd.notna(value) and bool(value) for value in predictions[key]], dtype=bool)


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
    share_unparsed, location and type (of all defective images, those answered yes with the right tag);
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
    rng, more = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    rows = estimate_rows(judged, lambda group: _shares(group, rng) | _error_shares(group, more))
    for name, group in judged.groupby("benchmark", sort=True):
        rows += [
            {"benchmark": str(name), "metric": metric, "value": float(count)}
            | {"low": np.nan, "high": np.nan, "n": len(group), "unit": "images", "note": ""}
            for metric, count in _counts(group).items()
        ]
    return pd.DataFrame(rows)


def _shares(group: pd.DataFrame, rng: np.random.Generator) -> dict[str, Estimate]:
    """The metrics of one benchmark that are shares of its images."""
    right = label_means(group, "correct", rng)
    shares = {
        "balanced_accuracy": mean_of_labels(right),
        "accuracy_normal": right["no"],
        "accuracy_defective": right["yes"],
    }
    for metric in ("yes", "unparsed"):
        means = label_means(group, f"is_{metric}", rng)
        shares[f"share_{metric}"] = weighted_sum([(float((group["label"] == k).mean()), e) for k, e in means.items()])
    for tag in ("location", "type"):
        shares[tag] = bootstrap_mean(group[f"{tag}_right"].to_numpy(float), f"defective images with a {tag}", rng)
    return shares


def _error_shares(group: pd.DataFrame, rng: np.random.Generator) -> dict[str, Estimate]:
    """Errors by their kind, and balanced accuracy averaged over the categories that have both labels."""
    wrong = label_means(group, "wrong", rng)
    categories = [
        mean_of_labels(label_means(category, "correct", rng))
        for _, category in group.groupby("category", sort=True)
        if category["label"].nunique() == 2
    ]
    parts = [(1 / len(categories), category) for category in categories]
    averaged = weighted_sum(parts) if parts else bootstrap_mean([], "category of both", rng)
    return {"balanced_accuracy_by_category": averaged, "overkill": wrong["no"], "miss": wrong["yes"]}


def _counts(group: pd.DataFrame) -> dict[str, int]:
    """Confusion counts with yes as the positive class; tp + fn + tn + fp + unparsed = images. Then other counts."""
    classes = [answer or _UNPARSED for answer in group["answer"]]
    (tn, fp, _), (fn, tp, _), _ = confusion_matrix(group["label"], classes, labels=[*_LABELS, _UNPARSED])
    others = {key: count for key in ("refused", "cut") if (count := int(_flagged(group, key).sum()))}
    return {"tp": tp, "fn": fn, "tn": tn, "fp": fp, _UNPARSED: len(group) - tp - fn - tn - fp} | others


def parser_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per parser, in percent: balanced accuracy (mean of benchmarks), the points it moves away from `fair`,
    share unparsed, and the share of answers that it reads differently from `fair`."""
    read = {parser: answers_of(predictions, parser) for parser in PARSERS}
    groups = predictions.reset_index(drop=True).groupby("benchmark", sort=False)["label"]
    accuracy = {
        parser: float(
            np.mean([balanced_accuracy(list(labels), [answers[i] for i in labels.index]) for _, labels in groups])
        )
        for parser, answers in read.items()
    }
    columns = {
        "balanced accuracy": accuracy,
        "points against fair": {parser: value - accuracy["fair"] for parser, value in accuracy.items()},
        "unparsed": {parser: 100 * float(np.mean([a is None for a in answers])) for parser, answers in read.items()},
        "read otherwise": {
            parser: 100 * float(np.mean([a != b for a, b in zip(answers, read["fair"], strict=True)]))
            for parser, answers in read.items()
        },
    }
    return pd.DataFrame(columns).rename_axis("parser")
