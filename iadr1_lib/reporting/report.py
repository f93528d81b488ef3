"""What a run found, and what several seeds found together, as tables; the README's results are made of them.

The first half reads what the notebooks recorded in a run folder (metrics.json, stage.json, manifest.json, predictions).
`pool_seeds` puts runs of different seeds side by side, and `write_readme` repeats those numbers in README.md. `page`
makes one HTML page of all this. Nothing is measured here again except differences between models over all seeds, which
need the predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import sanity, scoring
from iadr1_lib.expert_ad import note_of
from iadr1_lib.files import read_object, write_text
from iadr1_lib.reporting import paper_tables, plots
from iadr1_lib.reporting.studies import BASELINE, SHIPPED, STUDIES, reference_study
from iadr1_lib.runs import RUN_KEYS, notebook_records, pooled_provenance, project_root, read_metrics_file, require

STAGES = plots.STAGES  # name in files -> title
COMPARISONS = (("pa_sft", "base"), ("sc_grpo", "pa_sft"), ("control", "pa_sft"), ("sc_grpo", "control"))
COST = {
    "course seconds": "whole course",
    "peak memory": "peak memory, all processes",
    "pa_sft/seconds": "PA-SFT",
    "sc_grpo/seconds": "SC-GRPO",
    "control/seconds": "control",
    "make reproduce seconds": "make reproduce, install included",  # these two come from outside a run
    "make test seconds": "make test, install included",
}
EVALUATION, REPORT, BATCH = "08_evaluation", "10_report", "batch"
REFERENCE = Path("data") / "reference" / "mini" / "metrics.json"
MARKS = ("<!-- results: written by `iadr1 report --readme` -->", "<!-- end of results -->")


# ------------------------------------------------------------------------------------------ what was recorded


def recorded(folder: Path) -> dict[str, Any]:
    """metrics.json of a run folder; UserError if the evaluation has not been recorded there."""
    path = require(folder / "metrics.json", EVALUATION)
    metrics: dict[str, Any] = read_metrics_file(path, of_run=True)
    if not any(row["notebook"] == EVALUATION for row in metrics["rows"]):
        raise UserError(f"{path} has no rows of {EVALUATION}: run that notebook first (iadr1 run --only 08)")
    if missing := {*RUN_KEYS, "parameters"} - set(metrics["provenance"]):
        raise UserError(f"{path} does not say its {', '.join(sorted(missing))}: run the course's notebooks again")
    return metrics


def stage_facts(stage: Path) -> dict[str, Any] | None:
    """stage.json of a stage's folder, None where it was not trained; UserError for another shape."""
    number = (int, float)
    facts: dict[str, Any] | None = read_object(stage / "stage.json", seconds=number, steps=number)
    return facts


def stage_scores(metrics: dict[str, Any]) -> pd.DataFrame:
    """The rows named stage/metric/benchmark, of notebook 08 or of several seeds, a column for each part of the name.

    Stages come in the course's order.
    """
    rows = []
    for row in metrics["rows"]:
        parts = row["name"].split("/")
        if row["notebook"] in (EVALUATION, REPORT) and len(parts) == 3 and parts[0] in STAGES:
            rows.append(dict(zip(("stage", "metric", "benchmark"), parts, strict=True)) | row)
    frame = pd.DataFrame(rows)
    frame[["value", "low", "high"]] = frame[["value", "low", "high"]].astype(float)
    order = {name: place for place, name in enumerate(STAGES)}
    return frame.sort_values("stage", key=lambda stage: stage.map(order), kind="stable", ignore_index=True)


def headline(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per metric, one column per stage: mean of the mini benchmarks with its 95 % interval."""
    scores = stage_scores(metrics)
    means = scores[(scores["benchmark"] == scoring.MEAN) & scores["metric"].isin(scoring.METRICS)]
    table = {
        STAGES[str(stage)]: {row["metric"]: scoring.level(row) for row in rows.to_dict("records")}
        for stage, rows in means.groupby("stage", sort=False)
    }
    return (
        pd.DataFrame(table)
        .reindex([m for m in scoring.METRICS if m in set(means["metric"])])
        .rename(index=scoring.METRICS)
        .fillna("–")
    )


def differences(metrics: dict[str, Any]) -> pd.DataFrame:
    """The rows of notebook 08 named difference/stage-stage/metric, in percentage points, with intervals."""
    by_name = {row["name"]: row for row in metrics["rows"] if row["notebook"] == EVALUATION}
    rows = []
    for pair in (f"{model}-{baseline}" for model, baseline in COMPARISONS):
        for metric in scoring.PAIRED:
            row = by_name.get(f"difference/{pair}/{metric}")
            if row:
                said = {"comparison": comparison_title(pair), "metric": metric}
                rows.append(said | {"seed": metrics["provenance"]["seed"], **row})
    return pd.DataFrame(rows, columns=["comparison", "metric", "seed", "value", "low", "high", "n"])


def comparison_title(pair: str) -> str:
    """ "sc_grpo-pa_sft" -> "SC-GRPO − PA-SFT"."""
    model, baseline = pair.split("-")
    return f"{STAGES[model]} − {STAGES[baseline]}"


def cost(folder: Path) -> pd.DataFrame:
    """Seconds and steps of each trained stage, from its stage.json."""
    rows = []
    for stage in STAGES:
        facts = stage_facts(folder / stage)
        if facts:
            rows.append({"stage": STAGES[stage], "seconds": facts["seconds"], "steps": facts["steps"]})
    return pd.DataFrame(rows, columns=["stage", "seconds", "steps"])


def notebook_times(folder: Path) -> pd.DataFrame:
    """Status, seconds and peak memory (MiB, all processes) of each notebook, from manifest.json."""
    records = notebook_records(folder / "manifest.json")
    rows = [
        {
            "notebook": name,
            "status": record["status"],
            "seconds": record.get("seconds"),
            "peak MiB": record.get("peak_mib"),
        }
        for name, record in sorted(records.items())
        if name != REPORT  # it is being executed, or stands from an earlier call
    ]
    return pd.DataFrame(rows, columns=["notebook", "status", "seconds", "peak MiB"])


def parser_of(metrics: dict[str, Any]) -> str:
    return str(metrics["provenance"]["parameters"].get("evaluation", {}).get("parser", "fair"))


def predictions(folder: Path) -> dict[str, pd.DataFrame]:
    """Predictions of every stage that has some, in the course's order; UserError if their protocols differ."""
    files = {stage: folder / "predictions" / f"{stage}.jsonl" for stage in STAGES}
    found = {stage: scoring.read_predictions(path) for stage, path in files.items() if path.exists()}
    if found:
        scoring.require_one_protocol(found)
    return found


def severity_of(image: str | Path) -> float:
    """How glaring a drawn defect is (0 barely visible, 1 glaring), from its notes.json; NaN for real ones."""
    return float(note_of(image).get("severity", np.nan))


def found_by_severity(answers: dict[str, pd.DataFrame], parser: str = "fair", bins: int = 5) -> pd.DataFrame:
    """Share of defects found per bin of severity, in %, as `plots.severity_curve` takes it.

    Columns stage, severity (the bin's middle), value, low, high (95 % Wilson intervals), n. Severities are
    what the drawing noted beside the pictures.
    """
    rows = []
    edges = np.linspace(0, 1, bins + 1)
    for stage, table in answers.items():
        judged = scoring.judge(table[table["label"] == "yes"], parser)
        severity = np.array([severity_of(image) for image in judged["image"]], dtype=float)
        judged["bin"] = np.clip(np.digitize(severity, edges) - 1, 0, bins - 1)
        for place, group in judged[~np.isnan(severity)].groupby("bin"):
            low, high = proportion_confint(int(group["correct"].sum()), len(group), method="wilson")
            middle = (edges[int(place)] + edges[int(place) + 1]) / 2
            value = 100 * float(group["correct"].mean())
            rows.append(
                {
                    "stage": stage,
                    "severity": middle,
                    "value": value,
                    "low": 100 * low,
                    "high": 100 * high,
                    "n": len(group),
                }
            )
    return pd.DataFrame(rows, columns=["stage", "severity", "value", "low", "high", "n"])


# ---------------------------------------------------------------------------------------- simple predictors

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


def baseline_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Balanced accuracy of each simple predictor on each benchmark, in %: the rows named baseline/…"""
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["name"].startswith("baseline/"):
            _, baseline, _, benchmark = row["name"].split("/")
            values.setdefault(baseline, {})[benchmark] = row["value"]
    table = pd.DataFrame.from_dict(values, orient="index", dtype=float)
    table = table[sorted(table.columns, key=lambda name: (name == scoring.MEAN, name))]
    table = table.reindex([name for name in scoring.BASELINES if name in table.index])
    return table.rename(index=lambda name: name.replace("_", " ")).rename_axis("predictor (%)").reset_index()


def judged_benchmarks(metrics: dict[str, Any]) -> pd.DataFrame:
    """Balanced accuracy of simple predictors and of every stage on each benchmark, drawn (from ``metrics``) or real.

    Columns benchmark, n (pictures), kind ("predictor" or "stage"), name, value, low, high. The real ones are those that
    the project ships. Where low and high of a row are those of seeds, a predictor, which has none, gets NaN.
    """
    rows: list[dict[Any, Any]] = []
    for row in metrics["rows"]:
        parts = row["name"].split("/")
        if parts[0] == "baseline" and len(parts) == 4:
            rows.append({**_without_seeds(row), "benchmark": parts[3], "kind": "predictor", "name": parts[1]})
    if metrics["rows"]:
        stages = stage_scores(metrics).query("metric == 'balanced_accuracy'")
        rows += [{"kind": "stage", **row, "name": row["stage"]} for row in stages.to_dict("records")]
    for title, word in REAL.items():
        for row in _shipped_rows(f"sanity_{word}.json"):
            rows.append({**row, "benchmark": title, "kind": "predictor", "name": row["name"].split("/")[1]})
        for stage in ("base", "pa_sft", "sc_grpo"):
            measured = _shipped_rows(f"real_{word}_{stage}.json")
            whole = (row for row in measured if row["name"].endswith(f"/balanced_accuracy/{scoring.MEAN}"))
            rows += [{**row, "benchmark": title, "kind": "stage", "name": stage} for row in whole]
    found = pd.DataFrame(rows)
    found[["value", "low", "high"]] = found[["value", "low", "high"]].astype(float)
    return found.reindex(columns=["benchmark", "n", "kind", "name", "value", "low", "high", "interval"])


def _without_seeds(row: dict[str, Any]) -> dict[str, Any]:
    """A predictor needs no training seed: what stands as lowest and highest seed is no interval."""
    return row | {"low": None, "high": None} if "seed" in str(row.get("interval", "")) else row


def _shipped_rows(file: str) -> list[dict[str, Any]]:
    record = read_metrics_file(project_root() / SHIPPED / file, {"rows": []})
    rows: list[dict[str, Any]] = record["rows"]
    return rows


def predictor_table(found: pd.DataFrame) -> pd.DataFrame:
    """`judged_benchmarks` for the eye: a row per benchmark, a column per predictor and stage; "–" is not measured."""
    cells: dict[str, dict[str, str]] = {}
    for row in found.to_dict("records"):
        title = STAGES.get(row["name"], row["name"].replace("_", " "))
        line = cells.setdefault(row["benchmark"], {"pictures": f"{row['n']:.0f}"})
        line[title] = scoring.level(row)
    columns = ["pictures", *(name.replace("_", " ") for name in scoring.BASELINES), *STAGES.values()]
    table = pd.DataFrame.from_dict(cells, orient="index").reindex(columns=columns)
    real = [name for name in table.index if name in REAL]
    drawn = [name for name in table.index if name not in REAL and name != scoring.MEAN]
    order = [*drawn, *(name for name in table.index if name == scoring.MEAN), *real]
    return table.loc[order].fillna("–").rename_axis("balanced accuracy (%)").reset_index()


def what_they_measure(found: pd.DataFrame) -> list[str]:
    """For each benchmark a sentence per predictor that does well there, or that none does (see `sanity.readings`).

    The last sentence names the benchmarks on which no stage stands above the best of the predictors.
    """
    found = found[found["benchmark"] != scoring.MEAN]
    best = found.pivot_table(index="benchmark", columns="kind", values="value", aggfunc="max", sort=False)
    simple = found[found["kind"] == "predictor"]
    simple = simple.rename(columns={"name": "baseline"})
    said = []
    for benchmark, rows in simple.groupby("benchmark", sort=False):
        none = f"{benchmark}: no simple predictor reaches {sanity.DOES_WELL:.0f}."
        said += sanity.readings(rows) or [none]
    best = best.reindex(columns=["stage", "predictor"])
    below = best.index[best["stage"] <= best["predictor"]]
    if len(below):
        said.append(f"No model of ours stands above the best simple predictor on {', '.join(below)}.")
    return said


# --------------------------------------------------------------------------------------------- several seeds


def pool_seeds(run_folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Rows for metrics.json from runs of one profile with different seeds.

    - stage/metric/benchmark and cost: the mean over the seeds; low and high are the lowest and highest seed.
    - difference/stage-stage/metric/seed N: one seed's paired difference with its 95 % stratified bootstrap
      interval; …/pooled: the mean over the seeds with the interval of that mean (images drawn again within
      each seed).

    Each row also has `seeds` (seed -> value) and `interval`, which says what low and high are. What is not in
    every run is left out. Raises UserError for a run without an evaluation, runs of different settings, or a
    seed that comes twice.
    """
    folders = [Path(folder) for folder in run_folders]
    found = _comparable(folders)
    wanted = [row for row in next(iter(found.values()))["rows"] if _is_pooled(row)]
    rows = []
    for row in wanted:
        rows += _mean_row(row["name"], _values(found, row), row["unit"], row["n"])
    for stage in list(STAGES)[1:]:
        facts = [stage_facts(folder / stage) for folder in folders]
        if all(facts):
            values = {seed: fact["seconds"] for seed, fact in zip(found, facts, strict=True) if fact}
            rows += _mean_row(f"{stage}/seconds", values, "s", None)
    answers = [predictions(folder) for folder in folders]
    parser = parser_of(next(iter(found.values())))
    for model, baseline in COMPARISONS:
        if all({model, baseline} <= set(one) for one in answers):
            pairs = {seed: (one[model], one[baseline]) for seed, one in zip(found, answers, strict=True)}
            metrics = scoring.PAIRED[:1] if baseline == "base" else scoring.PAIRED  # the base names no place and type
            for metric in metrics:
                rows += _difference_rows(f"difference/{model}-{baseline}/{metric}", pairs, metric, parser)
    return rows


def _comparable(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """seed -> metrics.json, after checking that the runs differ in nothing but the seed."""
    if not folders:
        raise UserError("there is no run to report on: name at least one run folder, such as runs/mini-s0")
    found: dict[str, dict[str, Any]] = {}
    first = None
    for folder in folders:
        metrics = recorded(folder)
        said = metrics["provenance"]
        first = first or said
        if said["parameters"] != first["parameters"]:
            raise UserError(f"{folder} and {folders[0]} were run with other settings: only their seeds may differ")
        if str(said["seed"]) in found:
            raise UserError(f"{folder} has seed {said['seed']}, as another run has: name each seed once")
        found[str(said["seed"])] = metrics
    return found


def _is_pooled(row: dict[str, Any]) -> bool:
    if row["notebook"] == BATCH:
        return row["name"] in ("course seconds", "peak memory", "from scratch")
    wanted = row["name"].endswith(f"/{scoring.MEAN}") or "/balanced_accuracy/" in row["name"]
    return bool(row["notebook"] == EVALUATION and wanted and not row["name"].startswith("difference/"))


def _values(found: dict[str, dict[str, Any]], wanted: dict[str, Any]) -> dict[str, float | None]:
    """seed -> value of that row, None where a run lacks it.

    What the batch measured counts for runs of the whole course only, if there is one: the time of some notebooks
    says nothing of the whole.
    """
    rows = {seed: _row_like(metrics, wanted) for seed, metrics in found.items()}
    if wanted["notebook"] == BATCH:
        most = max((row["n"] or 0 for row in rows.values() if row), default=0)
        rows = {seed: row for seed, row in rows.items() if row is None or (row["n"] or 0) == most}
    return {seed: row["value"] if row else None for seed, row in rows.items()}


def _row_like(metrics: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any] | None:
    rows = (row for row in metrics["rows"] if (row["notebook"], row["name"]) == (wanted["notebook"], wanted["name"]))
    return next(rows, None)


def _mean_row(name: str, values: dict[str, float | None], unit: str | None, n: int | None) -> list[dict[str, Any]]:
    known = {seed: float(value) for seed, value in values.items() if value is not None}
    if len(known) < len(values):
        return []
    ends = {
        "value": float(np.mean(list(known.values()))),
        "low": min(known.values()),
        "high": max(known.values()),
    }
    said = {"n": n, "unit": unit, "seeds": known, "interval": "lowest and highest seed"}
    return [{"notebook": REPORT, "name": name, **ends, **said}]


def _difference_rows(
    name: str, pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]], metric: str, parser: str
) -> list[dict[str, Any]]:
    groups = {f"seed {seed}": [seed] for seed in pairs} | {"pooled": list(pairs)}
    rows, values = [], {}
    for label, seeds in groups.items():
        models, baselines = ([pairs[seed][side] for seed in seeds] for side in (0, 1))
        made = scoring.paired_difference(models, baselines, metric, parser)
        if len(seeds) == 1 and label != "pooled":
            values[seeds[0]] = made.value
        numbers = {key: None if pd.isna(end := getattr(made, key)) else end for key in ("value", "low", "high")}
        said = {
            "seeds": {seed: values[seed] for seed in seeds if not pd.isna(values[seed])},
            "interval": "95 %, paired stratified bootstrap",
        }
        rows.append({"notebook": REPORT, "name": f"{name}/{label}", **numbers, "n": made.n, "unit": "points", **said})
    return rows


def pooled_metrics(run_folders: Sequence[str | Path]) -> dict[str, Any]:
    """The rows of `pool_seeds` with every run's provenance: what data/reference/mini/metrics.json holds."""
    rows = pool_seeds(run_folders)
    blocks = [recorded(Path(folder))["provenance"] for folder in run_folders]
    return {"rows": rows, "provenance": pooled_provenance(blocks[0]["parameters"], blocks)}


def pooled_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per metric, one column per stage: mean over the seeds, in brackets lowest and highest, in %."""
    by_name = {row["name"]: row for row in rows}
    stages = [stage for stage in STAGES if f"{stage}/balanced_accuracy/{scoring.MEAN}" in by_name]
    table = []
    for metric, title in scoring.METRICS.items():
        cells = [by_name.get(f"{stage}/{metric}/{scoring.MEAN}") for stage in stages]
        if any(cells):
            table.append([title, *(_spread(row) for row in cells)])
    return pd.DataFrame(table, columns=["mean of six mini benchmarks (%)", *(STAGES[stage] for stage in stages)])


def difference_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per comparison and metric: each seed's paired difference and the pooled one, with intervals."""
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        parts = row["name"].split("/")
        if parts[0] == "difference":
            key = f"{comparison_title(parts[1])}, {scoring.METRICS[parts[2]]}"
            table.setdefault(key, {})[parts[3]] = scoring.signed(row)
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis("difference (points)")
    return frame.reset_index().fillna("–")


def cost_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Time in minutes and memory in GiB, mean over the seeds with the lowest and the highest."""
    by_name = {row["name"]: row for row in rows}
    table = []
    for name, title in COST.items():
        if name in by_name:
            row = by_name[name]
            scale, unit = (60, "min") if row["unit"] == "s" else (1024, "GiB")
            scaled = row | {key: row[key] / scale for key in ("value", "low", "high") if row[key] is not None}
            table.append([title, f"{_spread(scaled)} {unit}"])
    return pd.DataFrame(table, columns=["what it costs", "mean (lowest to highest seed)"])


def _spread(row: dict[str, Any] | None) -> str:
    if row is None or pd.isna(row["value"]):
        return "–"
    same = f"{row['low']:.1f}" == f"{row['high']:.1f}"
    return f"{row['value']:.1f}" + ("" if same else f" ({row['low']:.1f} to {row['high']:.1f})")


# ---------------------------------------------------------------------------------------------------- README


def reference_metrics() -> dict[str, Any] | None:
    """The shipped results of the profile mini, or None where they have not been measured yet."""
    found: dict[str, Any] | None = read_metrics_file(project_root() / REFERENCE)
    return found


def shipped_metrics() -> dict[str, Any]:
    """As `reference_metrics`, or a UserError that says what to do."""
    found = reference_metrics()
    if found is None:
        raise UserError(
            f"{REFERENCE.as_posix()} is not there, so there are no results to show: name run folders, "
            "such as runs/mini-s0"
        )
    return found


def readme_block(metrics: dict[str, Any] | None) -> str:
    """The part of README.md between the marks: tables made from the shipped results and nothing else."""
    if metrics is None:
        return f"Not measured yet: `{REFERENCE.as_posix()}` is not there."
    runs = metrics["provenance"]["runs"]
    machine = runs[0]["hardware"]
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    said = (
        f"Source: `{REFERENCE.as_posix()}`; profile {metrics['provenance']['parameters']['profile']}, seeds "
        f"{', '.join(str(run['seed']) for run in runs)}; {machine['cores']} cores, {machine['processor']}, "
        f"device {machine['device']}; commit {commits}. Round brackets: the lowest and the highest seed. "
        "Square brackets: 95 % intervals of a paired bootstrap over images."
    )
    return "\n\n".join([*(_markdown(table) for table in tables(metrics["rows"])), said])


def ablation_table() -> pd.DataFrame:
    """One row per variant of each shipped study: balanced accuracy with the seeds' ends, and what it has more or less
    than the PA-SFT of the same seeds (95 % intervals)."""
    lines = []
    for study, plan in STUDIES.items():
        found = reference_study(study)
        rows = {row["name"]: row for row in found["rows"]} if found else {}
        for variant in (BASELINE, *plan.variants):
            own = f" ({plan.baseline})" if variant == BASELINE else ""
            level = rows.get(f"{variant}/balanced_accuracy/{scoring.MEAN}")
            changes = {
                f"{metric.replace('_', ' ')}, minus PA-SFT": scoring.signed(
                    rows.get(f"difference/{variant}/{BASELINE}/{metric}")
                )
                for metric in scoring.PAIRED
            }
            lines.append({"study": study, "variant": variant + own, "balanced accuracy (%)": _spread(level), **changes})
    return pd.DataFrame(lines)


def ablations_block() -> str:
    """The studies of `iadr1 ablate`, then the paper's claims one by one, and where both come from."""
    blocks = [found["provenance"] for study in STUDIES if (found := reference_study(study))]
    steps = {b["parameters"]["ablations"]["max_steps"] for b in blocks if b["parameters"]["study"] == "rewards"}
    devices = sorted({run["hardware"]["device"] for block in blocks for run in block["runs"]})
    commits = sorted({run["commit"] for block in blocks for run in block["runs"]})
    seeds = sorted({run["seed"] for block in blocks for run in block["runs"]})
    said = (
        f"Ablations: `{SHIPPED.as_posix()}/ablation_*.json`, made by `iadr1 ablate STUDY`; seeds "
        f"{', '.join(map(str, seeds))}; device {', '.join(devices)}; commit {', '.join(commits)}. Runs of `rewards` "
        f"are SC-GRPO with {' or '.join(map(str, steps))} steps, shorter than the course's; the others are PA-SFT, as "
        "long as the course's."
    )
    metrics = reference_metrics()
    if metrics is None:
        return "\n\n".join([_markdown(ablation_table()), said])
    claims = paper_tables.agreement(paper_tables.measured(metrics))
    told = claims[["claim", "where", "paper", "ours", "verdict"]].rename(columns={"where": "in the paper"})
    verdicts = (
        "The paper's claims, its differences in balanced accuracy and ours, in points. `agrees`: our 95 % interval "
        "lies on the same side of zero; `open`: it holds zero. No interval is corrected for the number of claims "
        "(notebook 09 has corrected p values). The benchmarks are others, so only the direction can be compared."
    )
    return "\n\n".join([_markdown(ablation_table()), said, _markdown(told), verdicts])


def real_block() -> str:
    """Models and simple predictors on the real pictures, and where the numbers come from."""
    table = predictor_table(judged_benchmarks({"rows": []}))
    said = (
        f"Real pictures, zero-shot, seed 0, balanced accuracy in percent with 95 % intervals. Source: "
        f"`{SHIPPED.as_posix()}/real_*.json` (`iadr1 evaluate`) and `sanity_*.json` (`iadr1 sanity`)."
    )
    return "\n\n".join([_markdown(table.drop(columns=["always yes", "always no", STAGES["control"]])), said])


def one_shot_table() -> pd.DataFrame:
    """Stages of seed 0 on the six mini benchmarks, without and with a normal picture shown first, in % with intervals.

    A column per stage; from mini_<zero|one>_shot_<stage>.json.
    """
    lines = []
    for metric in ("balanced_accuracy", "share_yes", "location", "type"):
        for shots in ("zero", "one"):
            line = {"%": f"{scoring.METRICS[metric]}, {shots}-shot"}
            for stage in ("base", "pa_sft", "sc_grpo"):
                rows = _shipped_rows(f"mini_{shots}_shot_{stage}.json")
                whole = (row for row in rows if row["name"].endswith(f"/{metric}/{scoring.MEAN}"))
                line[STAGES[stage]] = scoring.level(next(whole, None))
            lines.append(line)
    return pd.DataFrame(lines)


def one_shot_block() -> str:
    """The stages asked with a reference picture, and where the numbers come from."""
    said = (
        "Seed 0, six mini benchmarks, in percent with 95 % intervals. One-shot: the most similar normal training "
        f"picture of the category first. Source: `{SHIPPED.as_posix()}/mini_*_shot_*.json` "
        "(`iadr1 evaluate --data mini`, with `--shots 1` for one-shot; the base with the prompt `yes-no`)."
    )
    return "\n\n".join([_markdown(one_shot_table()), said])


def results_block() -> str:
    """All that stands between the marks of README.md."""
    return "\n\n".join([readme_block(reference_metrics()), ablations_block(), one_shot_block(), real_block()])


def tables(rows: list[dict[str, Any]]) -> list[pd.DataFrame]:
    """The pooled results as tables of text: levels, differences, simple predictors, cost; no empty ones."""
    baselines = baseline_table(rows).map(
        lambda value: value if isinstance(value, str) else "–" if pd.isna(value) else f"{value:.0f}"
    )
    found = (pooled_table(rows), difference_table(rows), baselines, cost_table(rows))
    return [table for table in found if len(table)]


def write_readme(path: Path | None = None) -> Path:
    """Renew the results in README.md from the shipped metrics file; the rest of the file stays as it is."""
    path = path or project_root() / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise UserError(f"{path} lacks the lines {MARKS[0]} and {MARKS[1]}: put them where the results belong")
    return write_text(path, f"{before}{MARKS[0]}\n\n{results_block()}\n\n{MARKS[1]}{after}")


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
