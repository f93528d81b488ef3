"""How well P(Yes) orders the images: AUROC and average precision with intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from iadr1_lib.evaluation.intervals import DRAWS, Estimate, bootstrap_mean, estimate_rows

_AT_ONCE = 100  # bootstrap draws held in memory at a time


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
        curves = _curves((group["label"] == "yes").to_numpy()[known], p_yes[known], rng)
        return curves | {"share_without_p_yes": bootstrap_mean(~known, "images", rng)}

    return pd.DataFrame(estimate_rows(predictions, estimates))


def _curves(defective: NDArray[np.bool_], p_yes: NDArray[np.float64], rng: np.random.Generator) -> dict[str, Estimate]:
    strata = {"normal": np.flatnonzero(~defective), "defective": np.flatnonzero(defective)}
    for word, rows in strata.items():
        if not len(rows):
            undefined = bootstrap_mean([], f"{word} images with P(Yes)", rng)
            return {"auroc": undefined, "average_precision": undefined}
    draws = []
    for start in range(0, DRAWS, _AT_ONCE):
        weights = np.zeros((min(_AT_ONCE, DRAWS - start), len(p_yes)))
        for rows in strata.values():
            weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=len(weights))
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
