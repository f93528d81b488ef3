"""The report: one page per run, several seeds together, the results in the README."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from iadr1_lib import report, runs, scoring, synthetic
from iadr1_lib.answer import build_answer
from iadr1_lib.benchmarks import load_mvtec
from iadr1_lib.cli import app

SKILL = {"base": 0.5, "pa_sft": 0.7, "sc_grpo": 0.85, "control": 0.75}
IMAGES = 16
PREDICTOR = 57.0  # what each simple predictor reaches


def write_run(
    folder: Path, world: Path, seed: int, stages: tuple[str, ...] = tuple(SKILL), logs: bool = True
) -> runs.Run:
    """A run folder as notebooks 04 to 08 leave it, with answers made by lot: right with a stage's skill."""
    run = runs.Run("smoke", seed, folder)
    samples = [sample for place in sorted(world.iterdir()) for sample in load_mvtec(place, place.name)]
    lot = random.Random(seed)
    rows: list[dict[str, Any]] = []
    answers = {}
    for stage in stages:
        said = [answered(sample, lot, SKILL[stage], stage, seed) for sample in samples]
        path = runs.write_text(
            run.path("predictions", f"{stage}.jsonl"), "".join(json.dumps(row) + "\n" for row in said)
        )
        answers[stage] = scoring.read_predictions(path)
        rows += scoring.metric_rows(scoring.score(answers[stage]), stage)
        if stage != "base":
            runs.write_json(run.path(stage, "stage.json"), {"seconds": 60.0 + seed, "steps": 10})
            if logs:
                write_log(run.path(stage, "log.csv"))
    for model, baseline in report.COMPARISONS:
        if {model, baseline} <= set(stages):
            for metric in scoring.PAIRED:
                made = scoring.paired_difference(answers[model], answers[baseline], metric)
                numbers = {key: getattr(made, key) for key in ("value", "low", "high", "n")}
                rows.append({"name": f"difference/{model}-{baseline}/{metric}", **numbers, "unit": "points"})
    for name in scoring.BASELINES:
        for benchmark in (*sorted(place.name for place in world.iterdir()), scoring.MEAN):
            numbers = {"value": PREDICTOR, "low": PREDICTOR - 4, "high": PREDICTOR + 4, "n": IMAGES, "unit": "%"}
            rows.append({"name": f"baseline/{name}/balanced_accuracy/{benchmark}", **numbers})
    runs.record_metrics(run, report.EVALUATION, rows)
    runs.record_metrics(run, "batch", [{"name": "course seconds", "value": 600.0 + seed, "unit": "s"}])
    return run


def answered(sample: Any, lot: random.Random, skill: float, stage: str, seed: int) -> dict[str, Any]:
    wrong = "no" if sample.label == "yes" else "yes"
    word = sample.label if lot.random() < skill else wrong
    tags = ("top", "hole") if word == "yes" else ()
    raw = word if stage == "base" else build_answer("I look at the top .", word, *tags)
    truth = {key: getattr(sample, key) for key in ("image", "category", "benchmark", "label", "location", "type")}
    asked = {"p_yes": 0.5, "prompt": "bare", "protocol": "fair", "model": stage, "seed": seed}
    return {**truth, "raw": raw, **asked}


def write_log(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "reward", "dev_score"])
        writer.writerows([[step, 1 / (step + 1), step, ""] for step in range(1, 10)] + [[10, "", "", 60]])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("world")
    for number, (name, families) in enumerate(synthetic.test_families().items()):
        synthetic.write_world(root / name, families, IMAGES, seed=number)
    return root


@pytest.fixture(scope="module")
def folders(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root: Path = tmp_path_factory.mktemp("runs")
    return [write_run(root / f"smoke-s{seed}", world, seed).folder for seed in (0, 1)]


# --------------------------------------------------------------------------------------------- one page


def test_page_stands_alone_and_repeats_the_recorded_numbers(folders: list[Path]) -> None:
    run = runs.Run("smoke", 0, folders[0])
    page = report.build_report(run)
    text = page.read_text(encoding="utf-8")
    assert page == folders[0] / "report.html"
    assert re.findall(r'(?:src|href)="(?!data:|https://)[^"]*"', text) == []
    assert "<script" not in text and "@import" not in text and "@media print" in text
    recorded = {row["name"]: row["value"] for row in report.recorded(folders[0])["rows"]}
    for stage in SKILL:
        assert f"{recorded[f'{stage}/balanced_accuracy/mean']:.1f} [" in text
    assert text.count("<img") >= 8
    assert text.count('class="source"') >= 7


def test_page_says_what_is_missing(world: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", world, 0, stages=("base", "pa_sft"), logs=False)
    text = report.build_report(run).read_text(encoding="utf-8")
    assert "Not in this run: SC-GRPO, control" in text


def test_page_escapes_what_models_and_machines_say(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = report.recorded(folders[0])
    metrics["provenance"]["hardware"]["processor"] = "<b>chip</b>"
    monkeypatch.setattr(report, "recorded", lambda folder: metrics)
    monkeypatch.setattr(report, "figures", lambda run, metrics: {})
    text = report.build_report(runs.Run("smoke", 0, folders[0])).read_text(encoding="utf-8")
    assert "&lt;b&gt;chip" in text and "<b>chip" not in text


def test_report_before_the_evaluation_names_the_notebook(tmp_path: Path) -> None:
    run = runs.Run("smoke", 0, tmp_path)
    with pytest.raises(runs.UserError, match="08_evaluation"):
        report.build_report(run)
    runs.record_metrics(run, "01_the_problem", [{"name": "x", "value": 1}])
    with pytest.raises(runs.UserError, match="08_evaluation"):
        report.build_report(run)


def test_every_defect_is_in_one_bin_of_severity(folders: list[Path]) -> None:
    answers = report.predictions(folders[0])
    table = report.found_by_severity(answers)
    defective = int((answers["base"]["label"] == "yes").sum())
    assert (table.groupby("stage")["n"].sum() == defective).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_pictures_without_notes_have_no_severity(tmp_path: Path) -> None:
    image = tmp_path / "screw" / "test" / "good" / "000.png"
    assert np.isnan(report.severity_of(image))


# ---------------------------------------------------------------------------------------- the paper's tables


def test_paper_tables_agree_with_each_other() -> None:
    models, stages = report.paper_table(1), report.paper_table(4)
    averages = models[report.PAPER_SETS].mean(axis=1)
    off = (averages - models["average"]).abs() > 0.06  # the paper rounds to one place
    assert models.loc[off, "model"].tolist() == ["Anomaly-OV"], "known: its average is not its columns' mean"
    last = stages[stages["stage"] == "SC-GRPO"].set_index(["model", "parameters"])
    own = models[models["group"] == "iad-r1"].set_index(["model", "parameters"])
    difference = (last.loc[own.index, report.PAPER_SETS] - own[report.PAPER_SETS]).abs()
    assert (difference < 0.05).all().all()


def test_paper_tables_are_the_given_ones(shared: Path) -> None:
    given = sorted((shared / "reference" / "tables").glob("*.csv"))
    assert [path.name for path in given] == sorted(path.name for path in (ROOT / "data" / "paper_tables").glob("*.csv"))
    for path in given:
        assert path.read_text() == (ROOT / "data" / "paper_tables" / path.name).read_text()


def test_unknown_paper_table_is_refused() -> None:
    with pytest.raises(runs.UserError, match="Tables 1 to 5"):
        report.paper_table(9)


def test_paper_beside_ours_adds_up(folders: list[Path]) -> None:
    table = report.paper_beside_ours(report.recorded(folders[0])).set_index("stage")
    for side in ("paper, 0.5B", "mini"):
        levels, added = table[f"{side} (%)"], table[f"{side}: added"]
        assert added["PA-SFT"] == pytest.approx(levels["PA-SFT"] - levels["base"])
        assert added["SC-GRPO"] == pytest.approx(levels["SC-GRPO"] - levels["PA-SFT"])


# --------------------------------------------------------------------------------------------- several seeds


def test_pooled_levels_are_means_over_the_seeds(folders: list[Path]) -> None:
    rows = {row["name"]: row for row in report.pool_seeds(folders)}
    for name in ("sc_grpo/balanced_accuracy/mean", "base/share_yes/mean", "course seconds"):
        each = [
            next(row["value"] for row in report.recorded(folder)["rows"] if row["name"] == name) for folder in folders
        ]
        assert rows[name]["value"] == pytest.approx(np.mean(each))
        assert rows[name]["seeds"] == dict(zip(("0", "1"), each, strict=True))
        assert (rows[name]["low"], rows[name]["high"]) == (min(each), max(each))
    assert rows["sc_grpo/seconds"]["value"] == 60.5


def test_the_time_of_some_notebooks_does_not_count_for_the_course(world: Path, tmp_path: Path) -> None:
    part = write_run(tmp_path / "smoke-s2", world, 2, logs=False)
    whole = write_run(tmp_path / "smoke-s3", world, 3, logs=False)
    for run, seconds, notebooks in ((part, 5.0, 3), (whole, 700.0, 10)):
        batch = [{"name": "course seconds", "value": seconds, "n": notebooks, "unit": "s"}]
        runs.record_metrics(run, report.BATCH, batch)
    for order in ([part.folder, whole.folder], [whole.folder, part.folder]):
        rows = {row["name"]: row for row in report.pool_seeds(order)}
        assert rows["course seconds"]["seeds"] == {"3": 700.0}


def test_pooled_differences_are_those_of_the_pairs(folders: list[Path]) -> None:
    rows = {row["name"]: row for row in report.pool_seeds(folders)}
    answers = [report.predictions(folder) for folder in folders]
    name = "difference/sc_grpo-pa_sft/balanced_accuracy"
    for seed, one in enumerate(answers):
        made = scoring.paired_difference(one["sc_grpo"], one["pa_sft"])
        row = rows[f"{name}/seed {seed}"]
        assert (row["value"], row["low"], row["high"]) == (made.value, made.low, made.high)
    pooled = rows[f"{name}/pooled"]
    assert pooled["value"] == pytest.approx(np.mean([rows[f"{name}/seed {seed}"]["value"] for seed in (0, 1)]))
    width = pooled["high"] - pooled["low"]
    assert width < rows[f"{name}/seed 0"]["high"] - rows[f"{name}/seed 0"]["low"]


def test_a_stage_that_one_run_lacks_is_left_out(folders: list[Path], world: Path, tmp_path: Path) -> None:
    lacking = write_run(tmp_path / "smoke-s2", world, 2, stages=("base", "pa_sft", "sc_grpo"), logs=False)
    names = {row["name"] for row in report.pool_seeds([folders[0], lacking.folder])}
    assert "sc_grpo/balanced_accuracy/mean" in names
    assert not any("control" in name for name in names)


def test_runs_that_cannot_be_compared_are_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(runs.UserError, match="seed 0"):
        report.pool_seeds([folders[0], folders[0]])
    with pytest.raises(runs.UserError, match="at least one"):
        report.pool_seeds([])
    other = report.recorded(folders[1])
    other["provenance"]["parameters"]["pa_sft"]["learning_rate"] = 7
    runs.write_json(tmp_path / "metrics.json", other)
    with pytest.raises(runs.UserError, match="other settings"):
        report.pool_seeds([folders[0], tmp_path])
    with pytest.raises(runs.UserError, match="missing"):
        report.pool_seeds([tmp_path / "nothing"])


def test_command_prints_and_writes_the_pooled_results(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "pooled.json"
    done = CliRunner().invoke(app, ["report", *map(str, folders), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "SC-GRPO − PA-SFT" in done.output and "pooled" in done.output
    written = json.loads(out.read_text())
    assert [run["seed"] for run in written["provenance"]["runs"]] == [0, 1]
    assert all(set(row) >= {"name", "value", "low", "high", "n", "unit", "seeds"} for row in written["rows"])


def test_command_without_runs_and_without_shipped_results_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "REFERENCE", tmp_path / "none.json")
    done = CliRunner().invoke(app, ["report"])
    assert done.exit_code == 1
    assert "name run folders" in done.output


# ---------------------------------------------------------------------------------------------------- README


def test_readme_block_repeats_the_metrics_and_their_source(folders: list[Path]) -> None:
    metrics = report.pooled_metrics(folders)
    block = report.readme_block(metrics)
    level = next(row for row in metrics["rows"] if row["name"] == "sc_grpo/balanced_accuracy/mean")
    assert f"{level['value']:.1f} ({level['low']:.1f} to {level['high']:.1f})" in block
    assert "seeds 0, 1" in block and metrics["provenance"]["runs"][0]["commit"] in block
    columns = {line.count("|") for line in block.split("\n\n")[0].splitlines()}
    assert len(columns) == 1, "every line of a table has the same number of cells"


def test_only_the_marked_part_of_the_readme_is_renewed(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{report.MARKS[0]}\n\nold\n\n{report.MARKS[1]}\n\nafter\n")
    runs.write_json(tmp_path / "metrics.json", report.pooled_metrics(folders))
    monkeypatch.setattr(report, "REFERENCE", tmp_path / "metrics.json")
    report.write_readme(path)
    once = path.read_text()
    assert once.startswith("before\n") and once.endswith("after\n") and "old" not in once
    assert "| balanced accuracy |" in once
    report.write_readme(path)
    assert path.read_text() == once
    path.write_text("no marks")
    with pytest.raises(runs.UserError, match="lacks the lines"):
        report.write_readme(path)


def test_values_that_are_not_defined_show_as_a_dash() -> None:
    row = {"value": None, "low": None, "high": None, "name": "x"}
    assert report._interval(row) == "–"
    assert pd.isna(report.severity_of("a/b/c/d.png"))
