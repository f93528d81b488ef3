"""Tables of text: what runs, studies and predictors reached, each value with its interval.

Levels are in percent, differences in points. Square brackets hold 95 % intervals over images, round ones the lowest and
the highest seed (see `evaluation.interval_text`).
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from iadr1_lib.evaluation import BASELINES, MEAN, METRICS, PAIRED, SEED_RANGE, interval_text, sanity
from iadr1_lib.reporting.results import STAGES, Row, by_name, differences, shipped, stage_scores
from iadr1_lib.reporting.studies import BASELINE, STUDIES, shipped_study
from iadr1_lib.world import BENCHMARKS

# What a whole run costs: name of the row -> title.
_COST = {
    "course seconds": "whole course",
    "peak memory": "peak memory, all processes",
    "pa_sft/seconds": "PA-SFT",
    "sc_grpo/seconds": "SC-GRPO",
    "control/seconds": "control",
    "make reproduce seconds": "make reproduce, install included",  # these two come from outside a run
    "make test seconds": "make test, install included",
}
# Real pictures that were evaluated: title -> in the names of their files, real_<name>_<stage>.json for the models and
# sanity_<name>.json for the predictors.
REAL = {
    "ELPV (solar cells)": "elpv",
    "MVTec-AD, screw": "screw",
    "MPDD, metal plate": "metal_plate",
    "VisA, capsules": "capsules",
    "KolektorSDD": "kolektor",
    "Magnetic tiles": "magnetic_tile",
}
_SHIPPED_STAGES = ("base", "pa_sft", "sc_grpo")  # whose evaluations ship, beside metrics.json


def result_tables(metrics: dict[str, Any]) -> list[pd.DataFrame]:
    """The results of one run or of several seeds: levels, differences, predictors, cost; no empty ones."""
    judged = judged_benchmarks(metrics, real=False)
    every = (stage_table(metrics), difference_table(metrics), predictor_table(judged), cost_table(metrics))
    return [table for table in every if len(table)]


def _wide(frame: pd.DataFrame, index: str, columns: str, signed: bool = False) -> pd.DataFrame:
    """Rows of value, low and high as text, spread over columns; both in the order of the rows, "–" for no value."""
    texts = [interval_text(row, signed) for row in frame.to_dict("records")]
    wide = frame.assign(text=texts).pivot(index=index, columns=columns, values="text")
    return wide.reindex(index=frame[index].unique(), columns=frame[columns].unique()).fillna("–")


def stage_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per metric, one column per stage: the mean of the benchmarks."""
    scores = stage_scores(metrics)
    drawn = {*scores["benchmark"]} == {MEAN, *BENCHMARKS}
    means = scores.query("benchmark == @MEAN and metric in @METRICS")
    means = means.assign(stage=means["stage"].map(STAGES), metric=means["metric"].map(METRICS))
    table = _wide(means, "metric", "stage").reindex(
        [title for title in METRICS.values() if title in set(means["metric"])]
    )
    title = "mean of six mini benchmarks (%)" if drawn else "mean of the benchmarks (%)"
    return table.rename_axis(title).reset_index().rename_axis(columns=None)


def difference_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per comparison and metric: each seed's paired difference and the pooled one."""
    rows = differences(metrics)
    title = rows["comparison"] + ", " + rows["metric"].map(METRICS)
    seed = ("seed " + rows["seed"]).replace("seed pooled", "pooled")
    table = _wide(rows.assign(title=title, seed=seed), "title", "seed", signed=True)
    return table.rename_axis("difference (points)").reset_index().rename_axis(columns=None)


def cost_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """Time in minutes and memory in GiB; of several seeds the mean."""
    named = by_name(metrics["rows"])
    lines = []
    for row, title in ((named[name], title) for name, title in _COST.items() if name in named):
        scale, unit = (60, "min") if row["unit"] == "s" else (1024, "GiB")
        scaled = {key: row[key] / scale for key in ("value", "low", "high") if row[key] is not None}
        lines.append([title, f"{interval_text(row | scaled)} {unit}"])
    return pd.DataFrame(lines, columns=["what it costs", "mean (lowest to highest seed)"])


# ---------------------------------------------------------------------------------------- simple predictors


def judged_benchmarks(metrics: dict[str, Any], real: bool = True) -> pd.DataFrame:
    """Balanced accuracy of simple predictors and of every stage on each benchmark, drawn or real.

    Columns benchmark, n (pictures), kind ("predictor" or "stage"), name, value, low, high, interval. Drawn ones are
    those of ``metrics``; the ``real`` ones ship with the project. A predictor needs no training seed: where low and
    high of a row are those of seeds, it gets NaN.
    """
    rows: list[dict[Any, Any]] = []
    for name, row in by_name(metrics["rows"]).items():
        if name.startswith("baseline/"):
            ends = {"low": None, "high": None} if row.get("interval") == SEED_RANGE else {}
            _, predictor, _, benchmark = name.split("/")
            rows.append({**row, **ends, "benchmark": benchmark, "kind": "predictor", "name": predictor})
    stages = stage_scores(metrics).query("metric == 'balanced_accuracy'")
    rows += [{"kind": "stage", **row, "name": row["stage"]} for row in stages.to_dict("records")]
    for title, word in REAL.items() if real else ():
        for row in shipped(f"sanity_{word}.json")["rows"]:
            rows.append({**row, "benchmark": title, "kind": "predictor", "name": row["name"].split("/")[1]})
        for stage in _SHIPPED_STAGES:
            row = _mean(f"real_{word}_{stage}.json", "balanced_accuracy")
            rows.append({**row, "benchmark": title, "kind": "stage", "name": stage})
    table = pd.DataFrame(rows, columns=["benchmark", "n", "kind", "name", "value", "low", "high", "interval"])
    return table.astype({"value": float, "low": float, "high": float})


def _mean(file: str, metric: str) -> Row:
    """The row of a metric's mean over all benchmarks, of a shipped evaluation."""
    return next(row for row in shipped(file)["rows"] if row["name"].endswith(f"/{metric}/{MEAN}"))


def predictor_table(judged: pd.DataFrame) -> pd.DataFrame:
    """`judged_benchmarks` for the eye: a row per benchmark, a column per predictor and stage; "–" is not measured."""
    table = _wide(judged, "benchmark", "name").reindex(columns=[*BASELINES, *STAGES]).fillna("–")
    table.insert(0, "pictures", judged.groupby("benchmark")["n"].first().map("{:.0f}".format))
    order = sorted(table.index, key=lambda name: (name in REAL, name == MEAN))  # drawn, their mean, real
    table = table.loc[order].rename(columns=lambda name: STAGES.get(name, name.replace("_", " ")))
    return table.rename_axis("balanced accuracy (%)").reset_index().rename_axis(columns=None)


def what_they_measure(judged: pd.DataFrame) -> list[str]:
    """For each benchmark a sentence per predictor that does well there, or that none does (see `sanity.readings`).

    The last sentence names the benchmarks on which no stage stands above the best of the predictors.
    """
    judged = judged[judged["benchmark"] != MEAN]
    simple = judged[judged["kind"] == "predictor"].rename(columns={"name": "baseline"})
    sentences = []
    for benchmark, rows in simple.groupby("benchmark", sort=False):
        none = f"{benchmark}: no simple predictor reaches {sanity.DOES_WELL:.0f}."
        sentences += sanity.readings(rows) or [none]
    best = judged.pivot_table(index="benchmark", columns="kind", values="value", aggfunc="max", sort=False)
    best = best.reindex(columns=["stage", "predictor"])
    below = best.index[best["stage"] <= best["predictor"]]
    if len(below):
        sentences.append(f"No model of ours stands above the best simple predictor on {', '.join(below)}.")
    return sentences


# ------------------------------------------------------------------------------- what ships with the project


def ablation_table() -> pd.DataFrame:
    """One row per measured variant of each shipped study: balanced accuracy, and what it has more or less than the
    PA-SFT of the same seeds."""
    lines = []
    for study, plan in STUDIES.items():
        rows = by_name(shipped_study(study)["rows"])
        measured = {name.split("/")[0] for name in rows}
        for variant in (v for v in (BASELINE, *plan.variants) if v in measured):
            own = f" ({plan.baseline})" if variant == BASELINE else ""
            level = interval_text(rows.get(f"{variant}/balanced_accuracy/{MEAN}"))
            line = {"study": study, "variant": variant + own, "balanced accuracy (%)": level}
            for metric in PAIRED:
                change = rows.get(f"difference/{variant}/{BASELINE}/{metric}")
                line[f"{metric.replace('_', ' ')}, minus PA-SFT"] = interval_text(change, signed=True)
            lines.append(line)
    return pd.DataFrame(lines)


def photo_table(split: str, metric: str) -> pd.DataFrame:
    """The model `photo` on real sets ("dev" or "test"), by the number of good pictures that it was given.

    `metric`: "balanced_accuracy" of the verdict, or "auroc" of P(Yes), beside nearest neighbours' with as many.
    """
    rows = by_name(shipped(f"{split}.json", "photo")["rows"])
    others = {"nearest": "nearest neighbours"} if metric == "auroc" else {}
    asked = {"pa_sft": STAGES["pa_sft"], "sc_grpo": STAGES["sc_grpo"]} | others
    columns = {
        f"{title}, {n or 'no'} good": f"{split}/{who}/{n}/{metric}" for who, title in asked.items() for n in (0, 1, 4)
    }
    sets = [name.rsplit("/", 1)[1] for name in rows if name.startswith(f"{split}/sc_grpo/0/{metric}/")]
    lines = [
        {f"{split} set": title} | {key: interval_text(rows.get(f"{name}/{title}")) for key, name in columns.items()}
        for title in sets
    ]
    return pd.DataFrame(lines).drop(columns="nearest neighbours, no good", errors="ignore")


def photo_differences() -> pd.DataFrame:
    """What changes the verdict and the order of the model `photo` on real sets, means over the sets, paired."""
    asked = {"one good picture minus none, PA-SFT": "pa_sft/1_minus_0/balanced_accuracy"}
    asked |= {"one good picture minus none, SC-GRPO": "sc_grpo/1_minus_0/balanced_accuracy"}
    asked |= {
        f"SC-GRPO minus PA-SFT, {n or 'no'} good": f"sc_grpo_minus_pa_sft/{n}/balanced_accuracy" for n in (0, 1, 4)
    }
    asked |= {f"AUROC, SC-GRPO minus nearest neighbours, {n} good": f"sc_grpo_minus_nearest/{n}/auroc" for n in (1, 4)}
    rows = {split: by_name(shipped(f"{split}.json", "photo")["rows"]) for split in ("dev", "test")}
    return pd.DataFrame(
        {"points": title}
        | {split: interval_text(own.get(f"{split}/{name}/{MEAN}"), signed=True) for split, own in rows.items()}
        for title, name in asked.items()
    )


def photo_places_and_types() -> pd.DataFrame:
    """Place and type of the defects that `photo` names with one good picture, on real sets with masks or types."""
    lines = []
    for split in ("dev", "test"):
        rows = by_name(shipped(f"{split}.json", "photo")["rows"])
        for name in rows:
            if match := re.fullmatch(rf"{split}/chance/1/(location|type)/(.+)", name):
                tag, title = match.groups()
                of = {
                    "all": f"sc_grpo/1/{tag}",
                    "where Yes is said": f"sc_grpo/1/{tag}_where_yes",
                    "chance": f"chance/1/{tag}",
                }
                shown = {key: interval_text(rows[f"{split}/{own}/{title}"]) for key, own in of.items()}
                lines.append({"set": f"{title} ({split})", "what": tag} | shown)
    return pd.DataFrame(lines)


def one_shot_table() -> pd.DataFrame:
    """Stages of seed 0 on the six mini benchmarks, without and with a normal picture shown first.

    A column per stage; from mini_<zero|one>_shot_<stage>.json.
    """
    return pd.DataFrame(
        {"%": f"{METRICS[metric]}, {shots}-shot"}
        | {STAGES[stage]: interval_text(_mean(f"mini_{shots}_shot_{stage}.json", metric)) for stage in _SHIPPED_STAGES}
        for metric in ("balanced_accuracy", "share_yes", "location", "type")
        for shots in ("zero", "one")
    )
