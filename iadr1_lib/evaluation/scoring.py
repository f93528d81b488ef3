"""Scores: read answers, count them per benchmark, say how sure the numbers are, compare two models (`comparison` puts
more of them together).

Every metric here is a share of images, and every interval a stratified bootstrap: images are drawn again
within each benchmark and label, 2,000 times, seeded, 95 %. All values are in percent. Nothing here knows of
models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix, recall_score, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from statsmodels.stats.contingency_tables import mcnemar

from iadr1_lib.answer import (
    GRID,
    Answer,
    Label,
    category_of_words,
    cell_box,
    cell_of_words,
    matches_format,
    parse_answer,
    place_in_reasoning,
    tidy,
    type_in_reasoning,
)
from iadr1_lib.data import open_image, read_mask, says, says_where
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation.formatting import interval_text
from iadr1_lib.expert_ad import MOST_CHARACTERS, RULES
from iadr1_lib.files import read_json_lines
from iadr1_lib.records import Record, Sample

DRAWS = 2_000
PREDICTION_KEYS = (
    *("image", "category", "benchmark", "label", "location", "type"),  # the sample and its truth
    *("raw", "p_yes", "prompt", "protocol", "model", "seed"),  # what a model said, and how it was asked
)
MEAN = "mean"  # the row that averages the benchmarks, each with the same weight, as the paper's tables do

# ---------------------------------------------------------------------------------------------------- parsers

_ONE_LINE_ANSWER = re.compile(r"<answer>(.*?)</answer>")


def _fair(text: str) -> Label | None:
    return parse_answer(text).answer


def _released_tagged(text: str) -> Label | None:
    found = _ONE_LINE_ANSWER.search(text)
    return _first_option(found.group(1).strip().lower()) if found else None


def _released_free_text(text: str) -> Label | None:
    return _label(text.strip(".!").lower()) or _first_option(text)


def _released_free_text_ci(text: str) -> Label | None:
    return _released_free_text(text.lower().strip())


def _label(word: str) -> Label | None:
    return "yes" if word == "yes" else "no" if word == "no" else None


def _first_option(text: str) -> Label | None:
    """The option that the text equals, else the first, yes before no, where one contains the other."""
    if text in ("yes", "no"):
        return _label(text)
    return next((option for option in ("yes", "no") if option in text or text in option), None)


PARSERS: dict[str, Callable[[str], Label | None]] = {
    "strict": matches_format,
    "fair": _fair,
    "released-tagged": _released_tagged,
    "released-free-text": _released_free_text,
    "released-free-text-ci": _released_free_text_ci,
}


def read_answer(text: str, parser: str = "strict") -> Label | None:
    """What ``text`` answers: "yes", "no" or None.

    - ``strict``: the whole output is one of the two patterns.
    - ``fair``: as `answer.parse_answer` reads, the answer tag first and never the reasoning.
    - ``released-tagged``, ``released-free-text``, ``released-free-text-ci`` (case-insensitive): what the
      paper's released test code reads, its slips included ("snout" contains "no"; an empty tag is a yes).

    Raises ValueError for another parser.
    """
    if parser not in PARSERS:
        raise ValueError(f"no parser is called {parser!r}; choose from {', '.join(PARSERS)}")
    return PARSERS[parser](text)


# ------------------------------------------------------------------------------------------------ predictions

_LABELS, _UNPARSED = ["no", "yes"], "unparsed"


def balanced_accuracy(labels: Sequence[str], answers: Sequence[str | None]) -> float:
    """Mean of the shares of normal and of defective images answered rightly, in percent; unparsed counts as wrong.

    NaN without images of both labels.
    """
    said = [answer or _UNPARSED for answer in answers]
    return float(100 * np.mean(recall_score(labels, said, labels=_LABELS, average=None, zero_division=np.nan)))


def read_predictions(path: str | Path) -> pd.DataFrame:
    """One row per answered image, from JSON Lines with the keys PREDICTION_KEYS.

    UserError for a missing or empty file, with the line's number for one that is cut off or damaged, and for answers
    that name places on different grids.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There are no predictions at {path}: run the evaluation that writes them first.")
    rows = [_prediction(row, f"{path}, line {number}") for number, row in read_json_lines(path)]
    if not rows:
        raise UserError(f"{path} holds no prediction: delete it and run the evaluation again.")
    frame = pd.DataFrame(rows)
    twice = frame[frame.duplicated(["benchmark", "image"])]
    if len(twice):
        raise UserError(f"{path} answers {twice['image'].iloc[0]} twice: keep one line of each image.")
    if "grid" in frame and frame["grid"].nunique(dropna=False) > 1:
        raise UserError(f"{path} holds answers on different grids of places: keep one file for each grid.")
    return frame


def _prediction(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, list):
        raise UserError(f"{where} is a list: write one JSON object per line, as `iadr1 evaluate` does.")
    mend = "delete the line and run the evaluation again, which answers only what is missing."
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object: {mend}")
    missing = [key for key in PREDICTION_KEYS if key not in row]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}: {mend}")
    if row["label"] not in ("yes", "no") or not isinstance(row["raw"], str):
        raise UserError(f"{where} needs a label that is yes or no and a raw text: {mend}")
    for key in ("image", "benchmark", "category", "protocol"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise UserError(f"{where} names no {key} ({row[key]!r}): {mend}")
    for key in ("location", "type"):
        if not isinstance(row[key], str | None):
            raise UserError(f"{where} has the {key} {row[key]!r}, which is neither a text nor null: {mend}")
    sure = row["p_yes"]
    if sure is not None and not (isinstance(sure, int | float) and 0 <= sure <= 1):
        raise UserError(f"{where} has the p_yes {sure!r}, which is neither null nor between 0 and 1: {mend}")
    if type(row.get("grid", GRID)) is not int or row.get("grid", GRID) not in range(1, 6):
        raise UserError(f"{where} has the grid {row['grid']!r}, which is none of 1 to 5: {mend}")
    return row


def require_one_protocol(predictions: Mapping[str, pd.DataFrame]) -> str:
    """The protocol of all these predictions; UserError naming who was asked how if there are several."""
    asked = {name: sorted(set(table["protocol"])) for name, table in predictions.items()}
    found = sorted({protocol for protocols in asked.values() for protocol in protocols})
    if len(found) != 1:
        who = "; ".join(f"{name}: {' and '.join(protocols)}" for name, protocols in asked.items())
        raise UserError(
            f"models were asked under different protocols ({who}): a difference could come from the asking. Ask them "
            "alike, or say mixed=True where the table is to show just that."
        )
    return str(found[0])


def judge(predictions: pd.DataFrame, parser: str = "fair") -> pd.DataFrame:
    """Each prediction with what it was read as: columns answer, correct, location_right, type_right (0, 1 or
    NaN).

    ``location_right`` and ``type_right`` are NaN on normal images and where the truth is not known. On a
    defective image they are 1 only if the answer is yes and the tag names the true cell (whole words) or
    category (its name or a synonym). An unparsed answer (None) is wrong throughout. Cells are those of the 3×3 grid,
    or of the one that a column ``grid`` names.
    """
    judged = predictions.reset_index(drop=True).copy()
    place = partial(cell_of_words, grid=_grid_of(judged))
    judged["answer"] = _answers(predictions, parser)
    judged["correct"] = (judged["answer"] == judged["label"]).astype(float)
    said = [parse_answer(raw) for raw in judged["raw"]]
    for tag, reader in (("location", place), ("type", _type_name)):
        truths = judged[tag] if tag in judged else [None] * len(judged)
        judged[f"{tag}_right"] = [
            float(answer == "yes" and reader(getattr(tags, tag) or "") == reader(truth))
            if label == "yes" and isinstance(truth, str) and reader(truth)
            else np.nan
            for truth, tags, answer, label in zip(truths, said, judged["answer"], judged["label"], strict=True)
        ]
    return judged


def _grid_of(predictions: pd.DataFrame) -> int:
    """Rows and columns of the grid whose cells the places are: the paper's, or what the column ``grid`` says."""
    return int(predictions["grid"].iloc[0]) if "grid" in predictions else GRID


def _answers(predictions: pd.DataFrame, parser: str) -> list[Label | None]:
    """What each prediction is read as; a refusal is no answer, whatever words it has ("No, I cannot ...")."""
    refused = flagged(predictions, "refused")
    return [
        None if silent else read_answer(raw, parser) for raw, silent in zip(predictions["raw"], refused, strict=True)
    ]


def flagged(predictions: pd.DataFrame, key: str) -> NDArray[np.bool_]:
    """Which predictions carry a key that only some rows have at all, "refused" or "cut"."""
    if key not in predictions:
        return np.zeros(len(predictions), dtype=bool)
    return np.array([pd.notna(value) and bool(value) for value in predictions[key]], dtype=bool)


def _type_name(text: str) -> str | None:
    """The category, or the text itself where the vocabulary lacks it ("glue" is right for "glue" alone).

    None for a word that only says that there is a defect ("bad"): as a truth it tells no type.
    """
    return category_of_words(text) or (None if says(text) == "bad" else tidy(text).strip(" .!")) or None


def parser_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per parser, in percent: balanced accuracy (mean of benchmarks), the points it moves away from ``fair``,
    share unparsed, and the share of answers that it reads otherwise than ``fair`` does."""
    said = {parser: _answers(predictions, parser) for parser in PARSERS}
    groups = [np.flatnonzero(predictions["benchmark"] == name) for name in predictions["benchmark"].unique()]
    labels = list(predictions["label"])
    accuracies = {
        parser: float(np.mean([balanced_accuracy([labels[i] for i in g], [answers[i] for i in g]) for g in groups]))
        for parser, answers in said.items()
    }
    rows = {
        parser: {
            "balanced accuracy": accuracies[parser],
            "points against fair": accuracies[parser] - accuracies["fair"],
            "unparsed": 100 * float(np.mean([answer is None for answer in answers])),
            "read otherwise": 100 * float(np.mean([a != b for a, b in zip(answers, said["fair"], strict=True)])),
        }
        for parser, answers in said.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("parser")


def unknown_types(predictions: pd.DataFrame) -> list[str]:
    """True types that are none of the vocabulary's words."""
    named = predictions["type"].dropna().unique()
    return sorted(kind for kind in named if category_of_words(kind) is None and _type_name(kind))


# --------------------------------------------------------------------------------------- estimates, intervals


class _Estimate(NamedTuple):
    value: float  # a share, 0 to 1; NaN where undefined
    draws: NDArray[np.float64]  # the same share in each bootstrap draw
    n: int  # images it rests on
    note: str = ""


def _mean(values: Sequence[float] | NDArray[np.float64], what: str, rng: np.random.Generator) -> _Estimate:
    """Mean of one stratum with its bootstrap draws.

    Drawing n images with replacement and averaging depends only on how often each distinct value is drawn,
    and those counts are multinomial: one call per stratum gives exactly the bootstrap's distribution.
    """
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if not len(known):
        return _Estimate(np.nan, np.full(DRAWS, np.nan), 0, f"no {what}")
    distinct, counts = np.unique(known, return_counts=True)
    drawn = rng.multinomial(len(known), counts / len(known), size=DRAWS)
    return _Estimate(float(known.mean()), drawn @ distinct / len(known), len(known))


def _combine(parts: Sequence[tuple[float, _Estimate]]) -> _Estimate:
    """Weighted sum of independent strata; undefined, with the reason, if a part is."""
    parts = [(weight, part) for weight, part in parts if weight]
    value = sum(weight * part.value for weight, part in parts)
    draws = np.sum([weight * part.draws for weight, part in parts], axis=0)
    note = next((part.note for _, part in parts if part.note), "")
    return _Estimate(float(value), draws, sum(part.n for _, part in parts), note)


def _average(estimates: dict[str, _Estimate]) -> _Estimate:
    """Mean over benchmarks, each with the same weight; undefined if one is, so that means stay comparable."""
    noted = {name: e._replace(note=f"{name}: {e.note}" if e.note else "") for name, e in estimates.items()}
    return _combine([(1 / len(noted), estimate) for estimate in noted.values()])


def _row(benchmark: str, metric: str, estimate: _Estimate) -> dict[str, Any]:
    low, high = np.percentile(estimate.draws, [2.5, 97.5])
    percent = {"value": estimate.value, "low": low, "high": high}
    return {
        "benchmark": benchmark,
        "metric": metric,
        **{key: 100 * float(share) for key, share in percent.items()},
        "n": estimate.n,
        "unit": "%",
        "note": estimate.note,
    }


def _tabulate(by_benchmark: dict[str, dict[str, _Estimate]]) -> list[dict[str, Any]]:
    rows = [_row(name, metric, e) for name, found in by_benchmark.items() for metric, e in found.items()]
    metrics = next(iter(by_benchmark.values()))
    averages = {m: _average({name: found[m] for name, found in by_benchmark.items()}) for m in metrics}
    return rows + [_row(MEAN, metric, estimate) for metric, estimate in averages.items()]


def _by_label(group: pd.DataFrame, column: str, rng: np.random.Generator) -> dict[str, _Estimate]:
    return {
        label: _mean(group.loc[group["label"] == label, column].to_numpy(float), f"{word} images", rng)
        for label, word in (("no", "normal"), ("yes", "defective"))
    }


def _share_estimates(group: pd.DataFrame, rng: np.random.Generator) -> dict[str, _Estimate]:
    """The metrics of one benchmark that are shares of its images."""
    right = _by_label(group, "correct", rng)
    weights = {label: float((group["label"] == label).mean()) for label in right}
    found = {
        "balanced_accuracy": _combine([(0.5, right["no"]), (0.5, right["yes"])]),
        "accuracy_normal": right["no"],
        "accuracy_defective": right["yes"],
    }
    for metric in ("yes", "unparsed"):
        shares = _by_label(group, f"is_{metric}", rng)
        found[f"share_{metric}"] = _combine([(weights[label], shares[label]) for label in shares])
    for metric in ("location", "type"):
        right_tag = group[f"{metric}_right"].to_numpy(float)
        found[metric] = _mean(right_tag, f"defective images with a {metric}", rng)
    return found


def _more_shares(group: pd.DataFrame, rng: np.random.Generator) -> dict[str, _Estimate]:
    """Errors by their kind, and balanced accuracy averaged over the categories that have both labels."""
    said = _by_label(
        group.assign(wrong=(group["answer"].map({"yes": "no", "no": "yes"}) == group["label"])), "wrong", rng
    )
    per_category = []
    for _, category in group.groupby("category", sort=True):
        if category["label"].nunique() == 2:
            right = _by_label(category, "correct", rng)
            per_category.append(_combine([(0.5, right["no"]), (0.5, right["yes"])]))
    share = 1 / max(1, len(per_category))
    averaged = _combine([(share, one) for one in per_category]) if per_category else _mean([], "category of both", rng)
    return {"balanced_accuracy_by_category": averaged, "overkill": said["no"], "miss": said["yes"]}


def _counts(group: pd.DataFrame) -> dict[str, int]:
    """Confusion counts with yes as the positive class; tp + fn + tn + fp + unparsed = images."""
    said = [answer or _UNPARSED for answer in group["answer"]]
    (tn, fp, _), (fn, tp, _), _ = confusion_matrix(group["label"], said, labels=[*_LABELS, _UNPARSED])
    counts = {"tp": int(tp), "fn": int(fn), "tn": int(tn), "fp": int(fp)}
    return {**counts, _UNPARSED: len(group) - sum(counts.values())}


def score(predictions: pd.DataFrame, parser: str = "fair", seed: int = 0) -> pd.DataFrame:
    """All metrics per benchmark and, in percent, their mean over benchmarks.

    Columns: benchmark, metric, value, low, high, n, unit, note. Metrics in percent: balanced_accuracy (mean
    of the next two, pooled over a benchmark's categories), accuracy_normal, accuracy_defective, share_yes,
    share_unparsed, location and type (of all defective images, those answered yes with the right tag);
    balanced_accuracy_by_category (mean over a benchmark's categories, images drawn again within each), overkill
    (normal images called defective) and miss (defective ones called normal; what is unparsed is in neither).
    Counts: tp, fn, tn, fp, unparsed; where there are any, refused: the unparsed that a model behind an API would
    not answer, and cut: answers that the limit of length ended, read as far as they go. A metric that a benchmark
    cannot have (no normal images, say) is NaN and ``note`` says why; then so is its mean. An interval is empty of
    width where all images of a stratum agree: the bootstrap cannot see further.
    """
    judged = judge(predictions, parser)
    judged["is_yes"] = (judged["answer"] == "yes").astype(float)
    judged["is_unparsed"] = judged["answer"].isna().astype(float)
    rng, other = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    groups = {str(name): group for name, group in judged.groupby("benchmark", sort=True)}
    found = {name: _share_estimates(group, rng) for name, group in groups.items()}
    rows = _tabulate({name: found[name] | _more_shares(group, other) for name, group in groups.items()})
    for name, group in groups.items():
        for metric, count in _counts(group).items():
            rows.append(_count_row(name, metric, count, len(group)))
        for key in ("refused", "cut"):
            if count := int(flagged(group, key).sum()):
                rows.append(_count_row(name, key, count, len(group)))
    return pd.DataFrame(rows)


def _count_row(benchmark: str, metric: str, count: int, n: int) -> dict[str, Any]:
    bare = {"low": np.nan, "high": np.nan, "n": n, "unit": "images", "note": ""}
    return {"benchmark": benchmark, "metric": metric, "value": float(count), **bare}


def agreement(predictions: pd.DataFrame, parser: str = "fair", seed: int = 0) -> pd.DataFrame:
    """How often, among answers yes, the reasoning and the tags say the same; table as from ``score``.

    ``place_agrees``: the place that the reasoning names last is the tag's cell; ``place_differs``: it is
    another one; the rest names none. The same for ``type``. ``reasoning_opposes``: the reasoning says that all is
    well (rule "no contradiction" of `verification`); ``reasoning_agrees``: it names the tags' place and type and does
    not oppose. Nothing is compared with the truth here.
    """
    answers, grid = [parse_answer(raw) for raw in predictions["raw"]], _grid_of(predictions)
    said = pd.DataFrame(
        {
            "benchmark": predictions["benchmark"].to_numpy(),
            "yes": [answer == "yes" for answer in _answers(predictions, parser)],
            "place": [place_in_reasoning(a.reasoning or "", grid) for a in answers],
            "place_tag": [cell_of_words(a.location or "", grid) for a in answers],
            "type": [type_in_reasoning(a.reasoning or "") for a in answers],
            "type_tag": [_type_name(a.type or "") for a in answers],
        }
    )
    said["opposes"] = [yes and _opposes(answer, grid) for yes, answer in zip(said["yes"], answers, strict=True)]
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, _Estimate]] = {}
    for name, everything in said.groupby("benchmark", sort=True):
        group = everything[everything["yes"]]
        found[str(name)] = {}
        all_agree = ~group["opposes"].astype(bool)
        for what in ("place", "type"):
            same = (group[what] == group[f"{what}_tag"]) & group[what].notna()
            all_agree &= same
            for metric, share in (("agrees", same), ("differs", group[what].notna() & ~same)):
                found[str(name)][f"{what}_{metric}"] = _mean(np.asarray(share, float), "answers yes", rng)
        for metric, share in (("agrees", all_agree), ("opposes", group["opposes"])):
            found[str(name)][f"reasoning_{metric}"] = _mean(np.asarray(share, float), "answers yes", rng)
    return pd.DataFrame(_tabulate(found))


def _opposes(answer: Answer, grid: int) -> bool:
    """Whether the reasoning before a yes says that nothing is wrong; an endless text is not read."""
    reasoning = answer.reasoning or ""
    if not reasoning or len(reasoning) > MOST_CHARACTERS:
        return False
    record = Record("", "yes", cell_of_words(answer.location or "", grid), answer.type, "", reasoning, grid=grid)
    return RULES["no contradiction"].check(record, None) is not None


def grounding(
    predictions: pd.DataFrame, samples: Sequence[Sample], parser: str = "fair", seed: int = 0
) -> pd.DataFrame:
    """How often the named cell holds a part of the defect, of all defective images whose mask says where; as ``score``.

    Milder than ``location``, which wants the one true cell, where a defect touches several: a line over three cells
    is grounded in each. An answer that is not yes, or names no cell, grounds nothing. Masks are read from ``samples``.

    Raises UserError for a mask that cannot be read.
    """
    masks = {(sample.benchmark, sample.image): sample.mask for sample in samples}
    judged = judge(predictions, parser)
    grid = _grid_of(judged)
    judged["grounded"] = [
        _grounded(raw, answer, masks.get((benchmark, image)), grid) if label == "yes" else np.nan
        for raw, answer, benchmark, image, label in zip(
            *(judged[key] for key in ("raw", "answer", "benchmark", "image", "label")), strict=True
        )
    ]
    rng = np.random.default_rng(seed)
    found = {
        str(name): {"grounding": _mean(group["grounded"].to_numpy(float), "defective images with a mask", rng)}
        for name, group in judged.groupby("benchmark", sort=True)
    }
    return pd.DataFrame(_tabulate(found))


def _grounded(raw: str, answer: str | None, mask: str | None, grid: int) -> float:
    if mask is None or not says_where(pixels := read_mask(mask)):
        return np.nan
    cell = cell_of_words(parse_answer(raw).location or "", grid)
    if answer != "yes" or cell is None:
        return 0.0
    left, top, right, bottom = cell_box(cell, pixels.shape[1], pixels.shape[0], grid)
    return float(pixels[top:bottom, left:right].any())


# ---------------------------------------------------------------------------------------------------- ranking

_AT_ONCE = 100  # bootstrap draws held in memory at a time


def ranking(predictions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How well P(Yes) orders the images, whatever was answered; table as from ``score``.

    ``auroc``, ``average_precision`` (chance level: the share of defective images) and ``share_without_p_yes``: images
    whose output never got to a word have no P(Yes), stand in neither curve, and are counted here. Hence a high value
    beside a high share says little.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, _Estimate]] = {}
    for name, group in predictions.groupby("benchmark", sort=True):
        sure = group["p_yes"].to_numpy(np.float64)
        known = ~np.isnan(sure)
        found[str(name)] = _curves((group["label"] == "yes").to_numpy()[known], sure[known], rng)
        found[str(name)]["share_without_p_yes"] = _mean((~known).astype(float), "images", rng)
    return pd.DataFrame(_tabulate(found))


def _curves(defective: NDArray[np.bool_], sure: NDArray[np.float64], rng: np.random.Generator) -> dict[str, _Estimate]:
    strata = [np.flatnonzero(defective == side) for side in (False, True)]
    for rows, word in zip(strata, ("normal", "defective"), strict=True):
        if not len(rows):
            nothing = _mean([], f"{word} images with P(Yes)", rng)
            return {"auroc": nothing, "average_precision": nothing}
    draws = []
    for start in range(0, DRAWS, _AT_ONCE):
        weights = np.zeros((min(_AT_ONCE, DRAWS - start), len(sure)))
        for rows in strata:
            weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=len(weights))
        draws.append(areas(defective, sure, weights))
    aurocs, precisions = np.concatenate(draws, axis=1)
    return {
        "auroc": _Estimate(float(roc_auc_score(defective, sure)), aurocs, len(sure)),
        "average_precision": _Estimate(float(average_precision_score(defective, sure)), precisions, len(sure)),
    }


def areas(defective: NDArray[np.bool_], sure: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """AUROC and average precision for many weightings at once: 2 × draws, from weights of draws × images.

    scikit-learn's values with ``sample_weight`` (a test compares them), at a fraction of the time of a call per draw.
    """
    order = np.argsort(-sure, kind="stable")
    last = np.append(np.flatnonzero(np.diff(sure[order])), len(sure) - 1)  # where each run of equal values ends
    found, false = (
        np.insert(np.cumsum(weights[:, order] * side, axis=1)[:, last], 0, 0.0, axis=1)
        for side in (defective[order], ~defective[order])
    )
    all_found, all_false = found[:, -1], false[:, -1]
    auroc = np.trapezoid(found, false, axis=1) / (all_found * all_false)
    called = np.maximum(found + false, np.finfo(float).tiny)[:, 1:]
    precision = (np.diff(found, axis=1) * found[:, 1:] / called).sum(axis=1) / all_found
    return np.stack([auroc, precision])


def metric_rows(table: pd.DataFrame, prefix: str) -> list[dict[str, Any]]:
    """A table from ``score``, ``agreement`` or ``label_only_baselines`` as rows for metrics.json.

    Names are ``prefix/metric/benchmark``, as "sc_grpo/balanced_accuracy/mean"; undefined values become None.
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


# ------------------------------------------------------------------------------------------ paired comparison


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


def signed(row: Mapping[Any, Any] | None) -> str:
    """`interval_text` of a difference."""
    return interval_text(row, signed=True)


level = interval_text


class PairedDifference(NamedTuple):
    """Model minus baseline in percentage points, its 95 % interval, the images, McNemar's exact p."""

    value: float
    low: float
    high: float
    n: int
    p_mcnemar: float


_METRIC_COLUMNS = {"balanced_accuracy": "correct", "location": "location_right", "type": "type_right"}
PAIRED = tuple(_METRIC_COLUMNS)


def paired_difference(
    model: pd.DataFrame | Sequence[pd.DataFrame],
    baseline: pd.DataFrame | Sequence[pd.DataFrame],
    metric: str = "balanced_accuracy",
    parser: str = "fair",
    seed: int = 0,
    mixed: bool = False,
) -> PairedDifference:
    """How much better ``model`` is than ``baseline`` on the same images, as the mean over benchmarks.

    Pairs stay together in the bootstrap: an image is drawn with both models' answers to it. Lists give one
    pair of predictions per training seed: images are drawn within each seed, and the seeds' differences
    averaged (so the interval speaks of images, for these seeds). ``metric`` is balanced_accuracy, location or
    type. McNemar's exact test counts the images that only one of the two gets right.

    Raises ValueError for another metric, UserError if the images differ, or the protocols without ``mixed``.
    """
    if metric not in _METRIC_COLUMNS:
        raise ValueError(f"no paired metric is called {metric!r}; choose from {', '.join(_METRIC_COLUMNS)}")
    models = [model] if isinstance(model, pd.DataFrame) else list(model)
    baselines = [baseline] if isinstance(baseline, pd.DataFrame) else list(baseline)
    if len(models) != len(baselines) or not models:
        raise ValueError(f"{len(models)} sets of predictions cannot be paired with {len(baselines)}")
    if not mixed:
        require_one_protocol({"model": pd.concat(models), "baseline": pd.concat(baselines)})
    rng = np.random.default_rng(seed)
    pairs = [_pair(a, b, _METRIC_COLUMNS[metric], parser) for a, b in zip(models, baselines, strict=True)]
    total = _combine([(1 / len(pairs), _paired_mean(pair, rng, metric)) for pair in pairs])
    row = _row(MEAN, metric, total)
    p = _mcnemar(pd.concat(pairs))
    return PairedDifference(row["value"], row["low"], row["high"], total.n, p)


def _mcnemar(pair: pd.DataFrame) -> float:
    """Exact p of the images that only one of the two gets right."""
    table = confusion_matrix(pair["model"] == 1, pair["baseline"] == 1, labels=[True, False])
    return float(mcnemar(table, exact=True).pvalue)


def _pair(model: pd.DataFrame, baseline: pd.DataFrame, column: str, parser: str) -> pd.DataFrame:
    """Columns benchmark, image, label, model, baseline, difference: images with a value of the metric."""
    keys = ["benchmark", "image", "label"]
    sides = [judge(side, parser)[[*keys, column]] for side in (model, baseline)]
    joined = sides[0].merge(sides[1], on=keys, how="outer", suffixes=("_model", "_baseline"), indicator=True)
    alone = joined[joined["_merge"] != "both"]
    if len(alone):
        raise UserError(
            f"{len(alone)} images are in one set of predictions only, the first is {alone['image'].iloc[0]}: "
            "predict the same images with both models to compare them."
        )
    joined = joined.rename(columns={f"{column}_{side}": side for side in ("model", "baseline")})
    joined["difference"] = joined["model"] - joined["baseline"]
    return joined.dropna(subset=["difference"])


def _paired_mean(pair: pd.DataFrame, rng: np.random.Generator, metric: str) -> _Estimate:
    found = {}
    for name, group in pair.groupby("benchmark", sort=True):
        by_label = _by_label(group, "difference", rng)
        parts = [(0.5, by_label["no"]), (0.5, by_label["yes"])]
        found[str(name)] = _combine(parts) if metric == "balanced_accuracy" else by_label["yes"]
    if not found:
        return _mean([], "images with a known truth", rng)
    return _average(found)


# -------------------------------------------------------------------------------------------------- baselines

_SIDE = 96  # pixels; the detector reduces every picture to this
_PATCH = 12  # pixels, so 8 × 8 patches
_FALSE_ALARMS = 10  # percent of normal pictures that the detector may reject
_FOLDS = 5

BASELINES = ("always_yes", "always_no", "file_size", "mean_brightness", "classical_detector")


def label_only_baselines(train: Sequence[Sample], test: Sequence[Sample], seed: int = 0) -> pd.DataFrame:
    """Balanced accuracy of BASELINES on ``test``; table as from ``score``, metrics
    "always_yes/balanced_accuracy" …

    File size and mean brightness are fair attempts at cheating: each, less its category's median, goes into a
    shallow decision tree (two cuts, so bands too) that is fitted on the benchmark's own labels, 5-fold
    cross-fitted. The classical detector compares patches (colour, spread, edge strength in four directions)
    with those of the category's normal ``train`` pictures: an image's score is the distance of its oddest
    patches to their nearest neighbours, and one above the 90th percentile of held-out normal pictures is
    called defective. Where a category has no normal train picture, its normal test pictures serve, each
    judged by the others of its folds.

    Raises UserError for a picture that cannot be read.
    """
    if not test:
        raise UserError("There are no test pictures to measure the baselines on: check the data folder.")
    frame = pd.DataFrame([asdict(sample) for sample in test])
    patches, frame["mean_brightness"] = _describe(test)
    frame["file_size"] = [float(Path(sample.image).stat().st_size) for sample in test]
    normal_train = [sample for sample in train if sample.label == "no"]
    train_frame = pd.DataFrame([asdict(sample) for sample in normal_train], columns=list(frame.columns))
    said = {"always_yes": np.ones(len(frame), bool), "always_no": np.zeros(len(frame), bool)}
    for feature in ("file_size", "mean_brightness"):
        said[feature] = _cheat(frame, feature, seed)
    said["classical_detector"] = _detect(train_frame, _describe(normal_train)[0], frame, patches)
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, _Estimate]] = {}
    for name, group in frame.groupby("benchmark", sort=True):
        found[str(name)] = {}
        for baseline in BASELINES:
            judged = group.assign(correct=said[baseline][group.index] == (group["label"] == "yes"))
            parts = [(0.5, share) for share in _by_label(judged, "correct", rng).values()]
            found[str(name)][f"{baseline}/balanced_accuracy"] = _combine(parts)
    return pd.DataFrame(_tabulate(found))


def _describe(samples: Sequence[Sample]) -> tuple[NDArray[np.float64], list[float]]:
    """Patch descriptions, pictures × 64 × 8, and each picture's mean brightness (0 to 1)."""
    described, brightness = [], []
    count = _SIDE // _PATCH
    for sample in samples:
        picture = open_image(sample.image)
        colour = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=float) / 255
        brightness.append(float(np.asarray(picture.convert("L"), dtype=float).mean() / 255))
        grey = np.pad(colour.mean(axis=2), 1, mode="edge")
        middle = grey[1:-1, 1:-1]
        steps = (
            grey[1:-1, 2:],
            grey[2:, 1:-1],
            grey[2:, 2:],
            grey[2:, :-2],
        )  # right, down and both diagonals
        columns = [*np.moveaxis(colour, 2, 0), middle**2, *(np.abs(step - middle) for step in steps)]
        blocks = np.stack(columns, axis=-1).reshape(count, _PATCH, count, _PATCH, -1).mean(axis=(1, 3))
        blocks[..., 3] = np.sqrt(np.maximum(0, blocks[..., 3] - blocks[..., :3].mean(axis=-1) ** 2))
        described.append(blocks.reshape(count**2, -1))
    return np.asarray(described), brightness


def _cheat(frame: pd.DataFrame, feature: str, seed: int) -> NDArray[np.bool_]:
    """Whether each picture is called defective by one feature alone, benchmark by benchmark."""
    said = np.zeros(len(frame), dtype=bool)
    for _, group in frame.groupby("benchmark"):
        folds = min(_FOLDS, int(group["label"].value_counts().reindex(["no", "yes"], fill_value=0).min()))
        if folds < 2:
            continue  # too few of one label to learn from; balanced accuracy has wide bounds or none
        centred = group[feature] - group.groupby("category")[feature].transform("median")
        tree = DecisionTreeClassifier(max_depth=2, min_samples_leaf=0.05, class_weight="balanced", random_state=seed)
        split = StratifiedKFold(folds, shuffle=True, random_state=seed)
        said[group.index] = cross_val_predict(tree, centred.to_frame(), group["label"] == "yes", cv=split)
    return said


def _detect(
    train: pd.DataFrame, train_patches: NDArray[np.float64], test: pd.DataFrame, patches: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether each test picture is called defective by the distance of its patches to normal ones."""
    said = np.zeros(len(test), dtype=bool)
    for (benchmark, category), group in test.groupby(["benchmark", "category"]):
        normal = train.index[(train["benchmark"] == benchmark) & (train["category"] == category)]
        own = group.index[group["label"] == "no"]
        reference = train_patches[normal] if len(normal) else patches[own]
        if len(reference) < _FOLDS:
            continue  # too few normal pictures to know what is normal: nothing is called defective
        held_out = _held_out_scores(reference)
        scores = pd.Series(_oddness(reference, patches[group.index]), index=group.index)
        if not len(normal):
            scores[own] = held_out
        said[group.index] = scores > np.percentile(held_out, 100 - _FALSE_ALARMS)
    return said


def _held_out_scores(reference: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = np.empty(len(reference))
    for kept, held in KFold(_FOLDS).split(reference):
        scores[held] = _oddness(reference[kept], reference[held])
    return scores


def _oddness(reference: NDArray[np.float64], pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean distance of each picture's three oddest patches to the nearest reference patch, columns scaled."""
    width = reference.shape[-1]
    scaler = StandardScaler().fit(reference.reshape(-1, width))
    nearest = NearestNeighbors(n_neighbors=1).fit(scaler.transform(reference.reshape(-1, width)))
    distances, _ = nearest.kneighbors(scaler.transform(pictures.reshape(-1, width)))
    return np.asarray(np.sort(distances.reshape(len(pictures), -1), axis=1)[:, -3:].mean(axis=1))
