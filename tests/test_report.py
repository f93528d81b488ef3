"""The report's tables: one run, several seeds together, the results in the README."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made_runs import write_run
from typer.testing import CliRunner

from iadr1_lib import runs
from iadr1_lib.cli.app import app
from iadr1_lib.course import batch
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import scoring
from iadr1_lib.files import write_json
from iadr1_lib.reporting import paper_tables, report

# --------------------------------------------------------------------------------------------- one run


def test_every_defect_is_in_one_bin_of_severity(finished_runs: list[Path]) -> None:
    answers = report.predictions(finished_runs[0])
    table = report.found_by_severity(answers)
    defective = int((answers["base"]["label"] == "yes").sum())
    assert (table.groupby("stage")["n"].sum() == defective).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_pictures_without_notes_have_no_severity(tmp_path: Path) -> None:
    image = tmp_path / "screw" / "test" / "good" / "000.png"
    assert np.isnan(report.severity_of(image))


# ---------------------------------------------------------------------------------------- simple predictors


def test_each_benchmark_has_its_predictors_and_stages_side_by_side(finished_runs: list[Path]) -> None:
    metrics = report.recorded(finished_runs[0])
    found = report.judged_benchmarks(metrics)
    table = report.predictor_table(found).set_index("balanced accuracy (%)")
    real = [name for name in table.index if name in report.REAL]
    assert real == list(report.REAL) and len(table) == 6 + 1 + len(real)
    recorded = {row["name"]: row for row in metrics["rows"]}
    assert table.loc["mini-mesh", "SC-GRPO"] == scoring.level(recorded["sc_grpo/balanced_accuracy/mini-mesh"])
    assert table.loc["mini-mesh", "file size"] == "57.0 [53.0, 61.0]"
    shipped = json.loads((ROOT / "data" / "reference" / "mini" / "sanity_elpv.json").read_text())["rows"]
    brightness = next(row for row in shipped if "mean_brightness" in row["name"])
    assert table.loc["ELPV (solar cells)", "mean brightness"] == scoring.level(brightness)
    screw = json.loads((ROOT / "data" / "reference" / "mini" / "real_screw_base.json").read_text())["rows"]
    level = next(row for row in screw if row["name"].endswith("/balanced_accuracy/mean"))
    assert table.loc["MVTec-AD, screw", "base"] == scoring.level(level)


def test_every_real_benchmark_has_its_files() -> None:
    names = [f"sanity_{word}" for word in report.REAL.values()]
    names += [f"real_{word}_{stage}" for word in report.REAL.values() for stage in ("base", "pa_sft", "sc_grpo")]
    assert [name for name in names if not (ROOT / "data" / "reference" / "mini" / f"{name}.json").exists()] == []


def test_the_one_shot_table_holds_what_was_measured() -> None:
    table = report.one_shot_table().set_index("%")
    for shots, asked in (("zero", 0), ("one", 1)):
        for stage in ("base", "pa_sft", "sc_grpo"):
            path = ROOT / "data" / "reference" / "mini" / f"mini_{shots}_shot_{stage}.json"
            kept = json.loads(path.read_text())
            parameters = kept["provenance"]["parameters"]
            assert (parameters["shots"], parameters["data"]) == (asked, "mini")
            row = next(row for row in kept["rows"] if row["name"].endswith("/balanced_accuracy/mean"))
            assert table.loc[f"balanced accuracy, {shots}-shot", report.STAGES[stage]] == scoring.level(row)


def test_zero_shot_of_any_model_is_what_the_course_measures() -> None:
    whole = {row["name"]: row for row in json.loads((ROOT / report.REFERENCE).read_text())["rows"]}
    for stage in ("base", "pa_sft", "sc_grpo"):
        kept = json.loads((ROOT / "data" / "reference" / "mini" / f"mini_zero_shot_{stage}.json").read_text())["rows"]
        row = next(row for row in kept if row["name"].endswith("/balanced_accuracy/mean"))
        assert row["value"] == pytest.approx(whole[f"{stage}/balanced_accuracy/mean"]["seeds"]["0"])


def test_it_is_said_what_a_benchmark_measures_where_a_simple_predictor_does_well() -> None:
    def row(benchmark: str, kind: str, name: str, value: float, low: float = np.nan) -> dict[str, Any]:
        return {"benchmark": benchmark, "kind": kind, "name": name, "value": value, "low": low, "high": np.nan}

    rows = [
        row("even", "predictor", "file_size", 52),
        row("even", "stage", "pa_sft", 70),
        row("grainy", "predictor", "file_size", 80, 75),
        row("grainy", "predictor", "mean_brightness", 61, 48),
        row("grainy", "stage", "pa_sft", 79),
        row("odd", "predictor", "classical_detector", 66),
        row("odd", "stage", "pa_sft", 90),
    ]
    said = report.what_they_measure(pd.DataFrame(rows))
    assert [line.split(":")[0] for line in said[:3]] == ["even", "grainy", "odd"] and len(said) == 4
    assert "file size" in said[1] and "classical detector" in said[2] and "brightness" not in " ".join(said)
    assert "grainy" in said[3] and "even" not in said[3] and "odd" not in said[3]


def test_predictors_of_several_seeds_have_no_interval(finished_runs: list[Path]) -> None:
    found = report.judged_benchmarks(report.pooled_metrics(finished_runs))
    drawn = found[~found["benchmark"].isin(report.REAL)]
    assert drawn.loc[drawn["kind"] == "predictor", ["low", "high"]].isna().all().all()
    assert drawn.loc[drawn["kind"] == "stage", ["low", "high"]].notna().all().all()


# --------------------------------------------------------------------------------------------- several seeds


def test_pooled_levels_are_means_over_the_seeds(finished_runs: list[Path]) -> None:
    rows = {row["name"]: row for row in report.pool_seeds(finished_runs)}
    for name in ("sc_grpo/balanced_accuracy/mean", "base/share_yes/mean", "course seconds"):
        each = [
            next(row["value"] for row in report.recorded(folder)["rows"] if row["name"] == name)
            for folder in finished_runs
        ]
        assert rows[name]["value"] == pytest.approx(np.mean(each))
        assert rows[name]["seeds"] == dict(zip(("0", "1"), each, strict=True))
        assert (rows[name]["low"], rows[name]["high"]) == (min(each), max(each))
    assert rows["sc_grpo/seconds"]["value"] == 60.5


def test_the_time_of_some_notebooks_does_not_count_for_the_course(drawn_world: Path, tmp_path: Path) -> None:
    part = write_run(tmp_path / "smoke-s2", drawn_world, 2, logs=False)
    whole = write_run(tmp_path / "smoke-s3", drawn_world, 3, logs=False)
    for run, seconds, notebooks in ((part, 5.0, 3), (whole, 700.0, 10)):
        timed = [{"name": "course seconds", "value": seconds, "n": notebooks, "unit": "s"}]
        runs.record_metrics(run, report.BATCH, timed)
    for order in ([part.folder, whole.folder], [whole.folder, part.folder]):
        rows = {row["name"]: row for row in report.pool_seeds(order)}
        assert rows["course seconds"]["seeds"] == {"3": 700.0}


def test_pooled_differences_are_those_of_the_pairs(finished_runs: list[Path]) -> None:
    rows = {row["name"]: row for row in report.pool_seeds(finished_runs)}
    answers = [report.predictions(folder) for folder in finished_runs]
    name = "difference/sc_grpo-pa_sft/balanced_accuracy"
    for seed, one in enumerate(answers):
        made = scoring.paired_difference(one["sc_grpo"], one["pa_sft"])
        row = rows[f"{name}/seed {seed}"]
        assert (row["value"], row["low"], row["high"]) == (made.value, made.low, made.high)
    pooled = rows[f"{name}/pooled"]
    assert pooled["value"] == pytest.approx(np.mean([rows[f"{name}/seed {seed}"]["value"] for seed in (0, 1)]))
    width = pooled["high"] - pooled["low"]
    assert width < rows[f"{name}/seed 0"]["high"] - rows[f"{name}/seed 0"]["low"]


def test_a_stage_that_one_run_lacks_is_left_out(finished_runs: list[Path], drawn_world: Path, tmp_path: Path) -> None:
    lacking = write_run(tmp_path / "smoke-s2", drawn_world, 2, stages=("base", "pa_sft", "sc_grpo"), logs=False)
    names = {row["name"] for row in report.pool_seeds([finished_runs[0], lacking.folder])}
    assert "sc_grpo/balanced_accuracy/mean" in names
    assert not any("control" in name for name in names)


def test_runs_that_cannot_be_compared_are_refused(finished_runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed 0"):
        report.pool_seeds([finished_runs[0], finished_runs[0]])
    with pytest.raises(UserError, match="at least one"):
        report.pool_seeds([])
    other = report.recorded(finished_runs[1])
    other["provenance"]["parameters"]["pa_sft"]["learning_rate"] = 7
    write_json(tmp_path / "metrics.json", other)
    with pytest.raises(UserError, match="other settings"):
        report.pool_seeds([finished_runs[0], tmp_path])
    with pytest.raises(UserError, match="missing"):
        report.pool_seeds([tmp_path / "nothing"])


def test_command_prints_and_writes_the_pooled_results(finished_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "pooled.json"
    done = CliRunner().invoke(app, ["report", *map(str, finished_runs), "--out", str(out)])
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


def test_what_ships_with_the_project_does_not_count_as_found_by_named_runs(finished_runs: list[Path]) -> None:
    measured = paper_tables.measured(report.pooled_metrics(finished_runs), found={})
    own = paper_tables.agreement(measured)
    assert set(own.loc[own["where"] != "Table 4", "verdict"]) == {paper_tables.NOT_MEASURED}
    for more in ([], ["--page", str(finished_runs[0].parent / "p.html")]):
        done = CliRunner().invoke(app, ["report", *map(str, finished_runs), *more])
        assert paper_tables.in_short(own) in " ".join(done.output.split())
    page = (finished_runs[0].parent / "p.html").read_text(encoding="utf-8")
    assert paper_tables.in_short(own) in page and "ablation_grid.json" in page


WRONG = ["[]", "{}", "null", "3", '{"rows": []}', '{"rows": [], "provenance": null}', '{"rows": [3], "provenance": {}}']
WRONG += ['{"rows": [{"name": "x", "value": 1}], "provenance": {}}', '{"rows": {}, "provenance": {}}']


@pytest.mark.parametrize("content", WRONG)
def test_a_metrics_file_of_another_shape_is_named(finished_runs: list[Path], tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(finished_runs[0], tmp_path / "run")
    (folder / "metrics.json").write_text(content)
    done = CliRunner().invoke(app, ["report", str(folder), "--page", str(tmp_path / "p.html")])
    assert done.exit_code == 1 and "metrics.json" in done.stderr and len(done.stderr.splitlines()) == 1
    with pytest.raises(UserError, match=r"metrics\.json"):
        runs.record_metrics(runs.Run("smoke", 0, folder), "00_a", [{"name": "x", "value": 1}])
        report.recorded(folder)  # a file whose rows are of no evaluation may be added to
    if content != WRONG[4]:
        assert (folder / "metrics.json").read_text() == content


@pytest.mark.parametrize("content", ["[]", '{"notebooks": []}', '{"notebooks": {"00_a": 3}}', "{}"])
def test_a_manifest_of_another_shape_is_named(finished_runs: list[Path], tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        report.notebook_times(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json"):
        batch.Manifest(runs.Run("smoke", 0, tmp_path))


@pytest.mark.parametrize("content", ["[]", "{}", '{"seconds": "long", "steps": 3}'])
def test_a_stages_note_of_another_shape_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "pa_sft").mkdir()
    (tmp_path / "pa_sft" / "stage.json").write_text(content)
    with pytest.raises(UserError, match=r"stage\.json"):
        report.cost(tmp_path)


# ---------------------------------------------------------------------------------------------------- README


def test_readme_block_repeats_the_metrics_and_their_source(finished_runs: list[Path]) -> None:
    metrics = report.pooled_metrics(finished_runs)
    block = report.readme_block(metrics)
    level = next(row for row in metrics["rows"] if row["name"] == "sc_grpo/balanced_accuracy/mean")
    assert f"{level['value']:.1f} ({level['low']:.1f} to {level['high']:.1f})" in block
    assert "seeds 0, 1" in block and metrics["provenance"]["runs"][0]["commit"] in block
    columns = {line.count("|") for line in block.split("\n\n")[0].splitlines()}
    assert len(columns) == 1, "every line of a table has the same number of cells"


def test_only_the_marked_part_of_the_readme_is_renewed(
    finished_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{report.MARKS[0]}\n\nof yesterday\n\n{report.MARKS[1]}\n\nafter\n")
    write_json(tmp_path / "metrics.json", report.pooled_metrics(finished_runs))
    monkeypatch.setattr(report, "REFERENCE", tmp_path / "metrics.json")
    report.write_readme(path)
    once = path.read_text()
    assert once.startswith("before\n") and once.endswith("after\n") and "of yesterday" not in once
    assert "| balanced accuracy |" in once
    report.write_readme(path)
    assert path.read_text() == once
    path.write_text("no marks")
    with pytest.raises(UserError, match="lacks the lines"):
        report.write_readme(path)


def test_values_that_are_not_defined_show_as_a_dash() -> None:
    row = {"value": None, "low": None, "high": None, "name": "x"}
    assert scoring.level(row) == "–"
    assert pd.isna(report.severity_of("a/b/c/d.png"))
    assert scoring.signed(row) == "–" and paper_tables.verdict(row) == paper_tables.NOT_MEASURED
    assert paper_tables.turned(row) == row
    rows = [{**row, "name": "baseline/always_yes/balanced_accuracy/a"}]
    rows += [
        {**row, "name": f"pa_sft/balanced_accuracy/{scoring.MEAN}"},
        {**row, "name": "difference/sc_grpo-pa_sft/type/pooled"},
    ]
    rows += [{**row, "name": "peak memory", "unit": "MiB"}]
    for table in report.tables(rows):
        assert not table.isna().to_numpy().any() and "nan" not in table.to_string()
