"""What a run found, on one page; and what several seeds found together.

`build_report` gathers what the notebooks recorded in a run folder (metrics.json, stage.json, manifest.json,
predictions, logs) into report.html: one file with its figures inside, to be read, printed or sent.
`pool_seeds` puts runs of different seeds side by side, and `write_readme` repeats those numbers in README.md.
Nothing is measured here again except differences between models over all seeds, which need the predictions.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from statsmodels.stats.proportion import proportion_confint

from iadr1_lib import ablations, plots, scoring
from iadr1_lib.runs import Run, UserError, pooled_provenance, project_root, read_json, require, write_text

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
PAPER_MODEL = ("LLaVA-OneVision-SI", "0.5B")  # the paper's model whose three parts the mini VLM has
PAPER_SETS = ["MVTec", "VisA", "MPDD", "DAGM", "DTD", "SDD"]


# ------------------------------------------------------------------------------------------ what was recorded


def paper_table(number: int) -> pd.DataFrame:
    """Table 1 to 5 of the paper (arXiv 2508.09178), in percent; see data/paper_tables/README.md."""
    found = sorted((project_root() / "data" / "paper_tables").glob(f"table{number}_*.csv"))
    if not found:
        raise UserError(f"there is no table {number} in data/paper_tables: it holds Tables 1 to 5 of the paper")
    return pd.read_csv(found[0])


def recorded(folder: Path) -> dict[str, Any]:
    """metrics.json of a run folder; UserError if the evaluation has not been recorded there."""
    metrics: dict[str, Any] = read_json(require(folder / "metrics.json", EVALUATION))
    if not any(row["notebook"] == EVALUATION for row in metrics["rows"]):
        raise UserError(
            f"{folder / 'metrics.json'} has no rows of {EVALUATION}: run that notebook first (iadr1 run --only 08)"
        )
    return metrics


def stage_scores(metrics: dict[str, Any]) -> pd.DataFrame:
    """The rows of notebook 08 named stage/metric/benchmark, a column for each part of the name.

    Stages come in the course's order.
    """
    rows = []
    for row in metrics["rows"]:
        parts = row["name"].split("/")
        if row["notebook"] == EVALUATION and len(parts) == 3 and parts[0] in STAGES:
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
        STAGES[str(stage)]: {row["metric"]: _interval(row) for row in rows.to_dict("records")}
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


def paper_beside_ours(metrics: dict[str, Any]) -> pd.DataFrame:
    """Mean of six benchmarks after each stage, in %, and what each stage adds: paper (Table 4) and mini.

    The benchmarks are not the same: only directions can be compared.
    """
    table = paper_table(4)
    ours = (
        stage_scores(metrics)
        .query("metric == 'balanced_accuracy' and benchmark == @scoring.MEAN")
        .set_index("stage")["value"]
    )
    steps = table.assign(mean=table[PAPER_SETS].mean(axis=1)).pivot(
        index=["model", "parameters"], columns="stage", values="mean"
    )
    rows: list[dict[str, Any]] = []
    for stage, before in (("base", None), ("pa_sft", "base"), ("sc_grpo", "pa_sft")):
        level, mini = steps[STAGES[stage]], ours.get(stage, np.nan)
        row = {"stage": STAGES[stage], "paper, 0.5B (%)": level[PAPER_MODEL], "mini (%)": mini}
        if before:
            gains = level - steps[STAGES[before]]
            row["paper, 0.5B: added"] = gains[PAPER_MODEL]
            row["paper, seven models: added"] = f"{gains.min():+.1f} to {gains.max():+.1f}"
            row["mini: added"] = mini - ours.get(before, np.nan)
        rows.append(row)
    return pd.DataFrame(rows)


def cost(folder: Path) -> pd.DataFrame:
    """Seconds and steps of each trained stage, from its stage.json."""
    rows = []
    for stage in STAGES:
        facts = read_json(folder / stage / "stage.json")
        if facts:
            rows.append({"stage": STAGES[stage], "seconds": facts["seconds"], "steps": facts["steps"]})
    return pd.DataFrame(rows, columns=["stage", "seconds", "steps"])


def notebook_times(folder: Path) -> pd.DataFrame:
    """Status, seconds and peak memory (MiB, all processes) of each notebook, from manifest.json."""
    records = read_json(folder / "manifest.json", {"notebooks": {}})["notebooks"]
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


def predictions(folder: Path) -> dict[str, pd.DataFrame]:
    """Predictions of every stage that has some, in the course's order; UserError if their protocols differ."""
    files = {stage: folder / "predictions" / f"{stage}.jsonl" for stage in STAGES}
    found = {stage: scoring.read_predictions(path) for stage, path in files.items() if path.exists()}
    if found:
        scoring.require_one_protocol(found)
    return found


@lru_cache(maxsize=256)
def _notes(category: Path) -> dict[str, dict[str, Any]]:
    notes: dict[str, dict[str, Any]] = read_json(category / "notes.json", {})
    return notes


def severity_of(image: str | Path) -> float:
    """How glaring a drawn defect is (0 barely visible, 1 glaring), from its notes.json; NaN for real ones."""
    category = Path(image).parents[2]
    note = _notes(category).get(Path(image).relative_to(category).as_posix(), {})
    return float(note.get("severity", np.nan))


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


# -------------------------------------------------------------------------------------------------- one page


def figures(run: Run, metrics: dict[str, Any]) -> dict[str, Figure]:
    """Every figure of the report that this run has the files for, by its caption."""
    answers = predictions(run.folder)
    parser = _parser(metrics)
    scores = stage_scores(metrics)
    drawn = {"Balanced accuracy, with 95 % intervals.": plots.stage_bars(scores)}
    gains = differences(metrics).query("metric == 'balanced_accuracy'")
    if len(gains):
        drawn["What each stage adds, paired image by image."] = plots.stage_differences(gains)
    if not answers:
        return drawn
    judged = pd.concat([scoring.judge(table, parser).assign(stage=stage) for stage, table in answers.items()])
    drawn["What was answered, against the truth, all benchmarks together."] = plots.confusion_heatmaps(judged)
    severity = found_by_severity(answers, parser)
    if len(severity):
        drawn["Share of defects found, by how glaring they are."] = plots.severity_curve(severity)
    best = "sc_grpo" if "sc_grpo" in answers else list(answers)[-1]
    sheet = plots.answer_sheet(answers[best], n_right=4, n_wrong=4, seed=run.seed, parser=parser)
    drawn[f"Right and wrong answers after {STAGES[best]}, drawn by lot."] = sheet
    return drawn | _training_figures(run.folder)


def _training_figures(folder: Path) -> dict[str, Figure]:
    supervised = "loss mean_token_accuracy dev_score"
    reinforced = "reward reward_std frac_reward_zero_std completions/mean_length kl dev_score"
    drawn = {}
    for stage, columns in {"pa_sft": supervised, "sc_grpo": reinforced, "control": supervised}.items():
        path = folder / stage / "log.csv"
        if path.exists():
            log = pd.read_csv(path)
            there = [column for column in columns.split() if column in log]
            drawn[f"Training of {STAGES[stage]}: {stage}/log.csv."] = plots.training_curves(log, there)
    return drawn


def _parser(metrics: dict[str, Any]) -> str:
    return str(metrics["provenance"]["parameters"].get("evaluation", {}).get("parser", "fair"))


def build_report(run: Run) -> Path:
    """Write report.html into the run folder: one page that needs no other file and no network.

    Raises UserError if the evaluation has not been recorded.
    """
    metrics = recorded(run.folder)
    shown = figures(run, metrics)
    parts = [
        _section(
            "In short",
            _sentence(metrics),
            _table(headline(metrics), index=True),
            _source(
                "metrics.json, rows of 08_evaluation named <i>stage/metric/mean</i>; in brackets "
                "95 % bootstrap intervals over images"
            ),
        ),
        _section(
            "Figures",
            *(_figure(caption, drawing) for caption, drawing in shown.items()),
            _source("predictions/*.jsonl and */log.csv of this run"),
        ),
        _section(
            "Simple predictors",
            "<p>What can be had without looking for defects, and what a small classical detector finds. "
            "Balanced accuracy in percent.</p>",
            _table(baseline_table(metrics["rows"])),
            _source("metrics.json, rows of 08_evaluation named <i>baseline/predictor/metric/benchmark</i>"),
        ),
        _section(
            "The paper beside ours",
            _WARNING,
            _table(paper_beside_ours(metrics)),
            "<p>The paper's Table 4, all models, mean of six benchmarks:</p>",
            _table(_paper_stages()),
            "<p>The paper's Table 1:</p>",
            _table(paper_table(1).fillna("")),
            _source("data/paper_tables (arXiv 2508.09178, Tables 1 and 4); ours from metrics.json"),
        ),
        _section("Where we differ from the paper", _deviations(), _source("DEVIATIONS.md")),
        _section(
            "What it cost",
            _table(cost(run.folder)),
            _source("stage.json of each stage"),
            _table(notebook_times(run.folder)),
            _source("manifest.json; the notebook that wrote this page is not in it yet"),
        ),
        _section("Where these numbers come from", _provenance(run, metrics), _source("metrics.json, provenance")),
    ]
    title = f"IAD-R1 in miniature: profile {run.profile.name}, seed {run.seed}"
    return write_text(run.path("report.html"), _PAGE.format(title=escape(title), body="\n".join(parts)))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }}
h3 {{ font-size: 1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .6rem 0; font-size: .86rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }}
thead th {{ border-bottom: 2px solid #888; }}
figure {{ margin: 1.4rem 0; }} img {{ max-width: 100%; height: auto; }}
figcaption, .source {{ color: #555; font-size: .82rem; }}
.warning {{ border-left: 4px solid #d55e00; padding: .4rem .8rem; background: #fdf4ec; }}
.numbers th, .numbers td {{ white-space: nowrap; }}
code {{ font-size: .9em; }}
@media print {{
  @page {{ size: A4; margin: 16mm; }}
  body {{ font-size: 10pt; margin: 0; max-width: none; padding: 0; }}
  table {{ font-size: 7.5pt; }} th, td {{ padding: .1rem .35rem; }} .wide {{ overflow: visible; }}
  .source {{ break-before: avoid; }}
  h2, h3 {{ break-after: avoid; }} figure, tr {{ break-inside: avoid; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

_WARNING = """<p class="warning">The six mini benchmarks are drawn and small; they are not the paper's six,
and the mini VLM has a few million parameters, not half a billion. Levels cannot be compared. What can be
compared is the direction: which stage adds, and about how much.</p>"""


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def _source(text: str) -> str:
    return f'<p class="source">Source: {text}.</p>'


def _table(table: pd.DataFrame, index: bool = False, kind: str = "numbers") -> str:
    if table.empty:
        return "<p>Not measured in this run.</p>"
    html = table.to_html(index=index, border=0, na_rep="–", float_format=lambda value: f"{value:.1f}")
    return f'<div class="wide {kind}">{html}</div>'


def _figure(caption: str, drawing: Figure) -> str:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    said = escape(caption)
    width = min(100, round(100 * drawing.get_figwidth() / plots.WIDTH))  # so that letters have one size
    image = f'<img style="width:{width}%" alt="{said}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{said}</figcaption></figure>"


def _sentence(metrics: dict[str, Any]) -> str:
    """The result in words: the stages' means, then the paired gains with their intervals."""
    means = stage_scores(metrics).query("metric == 'balanced_accuracy' and benchmark == @scoring.MEAN")
    levels = ", ".join(f"{STAGES[row['stage']]} {_interval(row)}" for row in means.to_dict("records"))
    gains = differences(metrics).query("metric == 'balanced_accuracy'").to_dict("records")
    said = "; ".join(f"{row['comparison']} {scoring.signed(row)}" for row in gains)
    missing = [title for stage, title in STAGES.items() if stage not in set(means["stage"])]
    lines = [f"Balanced accuracy, mean of the six mini benchmarks, in percent: {levels}."]
    if said:
        lines.append(f"Paired differences in points: {said}.")
    if missing:
        lines.append(f"Not in this run: {', '.join(missing)}.")
    if metrics["provenance"]["parameters"].get("profile") == "smoke":
        lines.append("The profile smoke only tests that everything runs: its models have learnt nothing.")
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _interval(row: dict[Any, Any]) -> str:
    if pd.isna(row["value"]):
        return "–"
    return f"{row['value']:.1f}" + ("" if pd.isna(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]")


def baseline_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Balanced accuracy of each simple predictor on each benchmark, in %: the rows named baseline/…"""
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["name"].startswith("baseline/"):
            _, baseline, _, benchmark = row["name"].split("/")
            values.setdefault(baseline, {})[benchmark] = row["value"]
    table = pd.DataFrame.from_dict(values, orient="index")
    table = table[sorted(table.columns, key=lambda name: (name == scoring.MEAN, name))]
    table = table.reindex([name for name in scoring.BASELINES if name in table.index])
    return table.rename(index=lambda name: name.replace("_", " ")).rename_axis("predictor (%)").reset_index()


def _paper_stages() -> pd.DataFrame:
    table = paper_table(4)
    table["six benchmarks"] = table[PAPER_SETS].mean(axis=1)
    return table[["model", "parameters", "stage", *PAPER_SETS, "six benchmarks"]]


def _deviations() -> str:
    from nbconvert.filters.markdown import markdown2html

    path = project_root() / "DEVIATIONS.md"
    text = path.read_text(encoding="utf-8").split("\n", 1)[1] if path.exists() else "DEVIATIONS.md is missing."
    return f'<div class="wide">{markdown2html(text)}</div>'


def _provenance(run: Run, metrics: dict[str, Any]) -> str:
    block = metrics["provenance"]
    facts = {
        "profile, seed": f"{run.profile.name}, {run.seed}",
        "commit": block["commit"],
        "recorded": block["time"],
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": ", ".join(f"{key} {value}" for key, value in block["hardware"].items()),
        "versions": ", ".join(f"{key} {value}" for key, value in block["versions"].items()),
        "hash of world and base weights": block["data_hash"][:16],
        "how often the test families were opened": len(_openings(run)),
    }
    values = [{"what": what, "value": str(value)} for what, value in facts.items()]
    settings = [
        {"value of": f"{row['section']}.{row['key']}", "value": row["value"], "source": row["source"]}
        for row in run.profile.table()
    ]
    tables = [_table(pd.DataFrame(rows).astype(str), kind="words") for rows in (values, settings)]
    return f"{tables[0]}<h3>The profile</h3>{tables[1]}"


def _openings(run: Run) -> list[str]:
    path = run.path("test_openings.jsonl")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


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
        facts = [read_json(folder / stage / "stage.json") for folder in folders]
        if all(facts):
            values = {seed: fact["seconds"] for seed, fact in zip(found, facts, strict=True)}
            rows += _mean_row(f"{stage}/seconds", values, "s", None)
    answers = [predictions(folder) for folder in folders]
    parser = _parser(next(iter(found.values())))
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
        numbers = {"value": made.value, "low": made.low, "high": made.high, "n": made.n, "unit": "points"}
        said = {
            "seeds": {seed: values[seed] for seed in seeds},
            "interval": "95 %, paired stratified bootstrap",
        }
        rows.append({"notebook": REPORT, "name": f"{name}/{label}", **numbers, **said})
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
            scaled = row | {key: row[key] / scale for key in ("value", "low", "high")}
            table.append([title, f"{_spread(scaled)} {unit}"])
    return pd.DataFrame(table, columns=["what it costs", "mean (lowest to highest seed)"])


def _spread(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    same = f"{row['low']:.1f}" == f"{row['high']:.1f}"
    return f"{row['value']:.1f}" + ("" if same else f" ({row['low']:.1f} to {row['high']:.1f})")


# ---------------------------------------------------------------------------------------------------- README


def reference_metrics() -> dict[str, Any] | None:
    """The shipped results of the profile mini, or None where they have not been measured yet."""
    found: dict[str, Any] | None = read_json(project_root() / REFERENCE)
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


def ablation_block(study: str) -> str:
    """A study of `iadr1 ablate`: its table, the paper's beside it, and where both come from."""
    found = ablations.reference(study)
    if found is None:
        return f"Not measured yet: `iadr1 ablate {study}` does."
    said = found["provenance"]
    number, what = _study_told(study, said["parameters"])
    source = (
        f"{what}, then the paper's Table {number}. Differences are in points, in square brackets 95 % intervals of a "
        "paired bootstrap over images; round brackets: the lowest and the highest seed. "
        f"Source: `{(ablations.SHIPPED / f'ablation_{study}.json').as_posix()}`; "
        f"seeds {', '.join(str(run['seed']) for run in said['runs'])}; "
        f"commit {', '.join(sorted({run['commit'] for run in said['runs']}))}."
    )
    paper = paper_table(number).map(lambda cell: f"{cell:.1f}" if isinstance(cell, float) else cell)
    paper.columns = [f"paper: {str(name).replace('_', ' ')}" for name in paper]
    return "\n\n".join([_markdown(ablations.table(found["rows"])), _markdown(paper), source])


def _study_told(study: str, parameters: dict[str, Any]) -> tuple[int, str]:
    """The number of the paper's table that a study follows, and what was done."""
    if study == "reasoning":
        return 2, "PA-SFT with reasoning, and on the same pictures for as many steps with answers only"
    short = parameters["ablations"]
    return 3, (
        f"SC-GRPO in short runs ({short['steps']} steps of {short['prompts']} pictures with {short['group']} answers "
        "each, the last model kept) under different rewards"
    )


def results_block() -> str:
    """All that stands between the marks of README.md."""
    return "\n\n".join([readme_block(reference_metrics()), *(ablation_block(study) for study in ablations.STUDIES)])


def tables(rows: list[dict[str, Any]]) -> list[pd.DataFrame]:
    """The pooled results as tables of text: levels, differences, simple predictors, cost; no empty ones."""
    baselines = baseline_table(rows).map(lambda value: value if isinstance(value, str) else f"{value:.0f}")
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
