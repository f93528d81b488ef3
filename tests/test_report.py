"""What runs recorded, alone and several seeds together, and the documents made of the shipped results."""

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

from iadr1_lib.cli.app import app
from iadr1_lib.course import batch
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import MEAN, interval_text, paired_difference
from iadr1_lib.files import write_json, write_text
from iadr1_lib.reporting import documents, results, tables
from iadr1_lib.reporting.claims import NOT_MEASURED, agreement, in_short, measured
from iadr1_lib.runs import Run, record_metrics

SHIPPED = ROOT / "data" / "reference" / "mini"


def shipped(name: str) -> dict[str, Any]:
    return dict(json.loads((SHIPPED / name).read_text()))


def mean_row(name: str) -> dict[str, Any]:
    """Balanced accuracy of a shipped evaluation, mean of its benchmarks."""
    return next(row for row in shipped(name)["rows"] if row["name"].endswith("/balanced_accuracy/mean"))


# ------------------------------------------------------------------------------------------------- one run


def test_every_defect_is_in_one_bin_of_severity(finished_runs: list[Path]) -> None:
    answers = results.predictions(finished_runs[0])
    table = results.found_by_severity(answers)
    defective = int((answers["base"]["label"] == "yes").sum())
    assert (table.groupby("stage")["n"].sum() == defective).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert np.isnan(results.severity_of("screw/test/good/000.png")), "a real picture has no notes"


def test_tables_of_one_run_repeat_what_it_recorded(finished_runs: list[Path]) -> None:
    metrics = results.recorded(finished_runs[0])
    rows = results.by_name(metrics["rows"])
    stages = tables.stage_table(metrics).set_index("mean of six mini benchmarks (%)")
    assert stages.loc["balanced accuracy", "SC-GRPO"] == interval_text(rows["sc_grpo/balanced_accuracy/mean"])
    own = [row for row in metrics["rows"] if "/mini-" not in row["name"]]
    assert "mini" not in tables.stage_table(metrics | {"rows": own}).columns[0], "a mean of other benchmarks says so"
    changes = tables.difference_table(metrics).set_index("difference (points)")
    row = rows["difference/sc_grpo-pa_sft/balanced_accuracy"]
    assert changes.loc["SC-GRPO − PA-SFT, balanced accuracy", "seed 0"] == interval_text(row, signed=True)
    order = list(dict.fromkeys(results.differences(metrics)["comparison"]))
    assert order == ["PA-SFT − base", "SC-GRPO − PA-SFT", "control − PA-SFT", "SC-GRPO − control"]


BROKEN = [("pa_sft/stage.json", "[]"), ("pa_sft/stage.json", '{"seconds": "long", "steps": 3}')]
BROKEN += [("manifest.json", "[]"), ("manifest.json", '{"notebooks": {"00_a": 3}}')]


@pytest.mark.parametrize("file, content", BROKEN)
def test_a_file_of_another_shape_is_named(tmp_path: Path, file: str, content: str) -> None:
    write_text(tmp_path / file, content)
    manifest = (results.notebook_times, lambda folder: batch.Manifest(Run("smoke", 0, folder)))
    for read in manifest if file == "manifest.json" else (results.cost,):
        with pytest.raises(UserError, match=Path(file).name):
            read(tmp_path)


WRONG = [
    '{"rows": []}',
    "[]",
    '{"rows": [3], "provenance": {}}',
    '{"rows": [{"name": "x", "value": 1}], "provenance": {}}',
]


@pytest.mark.parametrize("content", WRONG)
def test_a_metrics_file_of_another_shape_is_named(finished_runs: list[Path], tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(finished_runs[0], tmp_path / "run")
    (folder / "metrics.json").write_text(content)
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 1 and "metrics.json" in done.stderr and len(done.stderr.splitlines()) == 1
    with pytest.raises(UserError, match=r"metrics\.json"):
        record_metrics(Run("smoke", 0, folder), "00_a", [{"name": "x", "value": 1}])
        results.recorded(folder)  # a file whose rows are of no evaluation may be added to
    if content != WRONG[0]:
        assert (folder / "metrics.json").read_text() == content


# --------------------------------------------------------------------------------------- simple predictors


def test_each_benchmark_has_its_predictors_and_stages_side_by_side(finished_runs: list[Path]) -> None:
    metrics = results.recorded(finished_runs[0])
    table = tables.predictor_table(tables.judged_benchmarks(metrics)).set_index("balanced accuracy (%)")
    assert list(table.index[-7:]) == ["mean", *tables.REAL] and len(table) == 6 + 7
    rows = results.by_name(metrics["rows"])
    assert table.loc["mini-mesh", "SC-GRPO"] == interval_text(rows["sc_grpo/balanced_accuracy/mini-mesh"])
    assert table.loc["mini-mesh", "file size"] == "57.0 [53.0, 61.0]"
    brightness = next(row for row in shipped("sanity_elpv.json")["rows"] if "mean_brightness" in row["name"])
    assert table.loc["ELPV (solar cells)", "mean brightness"] == interval_text(brightness)
    assert (table.loc[list(tables.REAL), ["file size", "SC-GRPO"]] != "–").all().all(), "each has its files"
    assert table.loc["MVTec-AD, screw", "base"] == interval_text(mean_row("real_screw_base.json"))
    assert len(tables.predictor_table(tables.judged_benchmarks(metrics, real=False))) == 7


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_tables_of_photo_hold_what_was_measured(split: str) -> None:
    rows = results.by_name(results.shipped(f"{split}.json", "photo")["rows"])
    for metric, more in (("balanced_accuracy", 0), ("auroc", 2)):
        table = tables.photo_table(split, metric).set_index(f"{split} set")
        assert table.index[-1] == MEAN and table.shape == (len(table), 6 + more) and (table != "–").all().all()
        for title in table.index:
            assert table.loc[title, "SC-GRPO, 4 good"] == interval_text(rows[f"{split}/sc_grpo/4/{metric}/{title}"])
    changes = tables.photo_differences().set_index("points")[split]
    assert changes["SC-GRPO minus PA-SFT, 1 good"] == interval_text(
        rows[f"{split}/sc_grpo_minus_pa_sft/1/balanced_accuracy/{MEAN}"], signed=True
    )
    places = tables.photo_places_and_types()
    own = places[places["set"].str.endswith(f"({split})")]
    assert {"location", "type"} == set(own["what"]) and (own != "–").all().all()


def test_what_is_said_of_where_photo_fails_is_what_was_measured() -> None:
    rows = results.by_name(results.shipped("dev.json", "photo")["rows"])
    words = " ".join((ROOT / "docs" / "photo.md").read_text().split())
    screws = [rows[f"dev/sc_grpo/{n}/balanced_accuracy/MVTec-AD, screw"] for n in (0, 1, 4)]
    assert "*Screws*: at chance with any number" in words and all(row["low"] <= 50 <= row["high"] for row in screws)
    boards = [rows[f"dev/sc_grpo/{n}/accuracy_normal/sawn wood"]["value"] for n in (0, 1, 4)]
    assert "most good boards are called defective" in words and max(boards) < 50
    assert "orders them the wrong way round" in words and rows["dev/sc_grpo/0/auroc/MPDD, metal plate"]["high"] < 50
    assert "helps the verdict. On test that is not shown" in words
    assert rows[f"dev/sc_grpo/1_minus_0/balanced_accuracy/{MEAN}"]["low"] > 0
    opened = results.by_name(results.shipped("test.json", "photo")["rows"])
    assert opened[f"test/sc_grpo/1_minus_0/balanced_accuracy/{MEAN}"]["low"] < 0
    dev, test = rows[f"dev/sc_grpo/1/balanced_accuracy/{MEAN}"], opened[f"test/sc_grpo/1/balanced_accuracy/{MEAN}"]
    assert "well below what dev promised" in words and test["high"] < dev["low"]
    for split, own in (("dev", rows), ("test", opened)):
        added = own[f"{split}/sc_grpo_minus_pa_sft/1/balanced_accuracy/{MEAN}"]
        assert "SC-GRPO shown to add to PA-SFT with one" in words and added["low"] < 0 < added["high"]
    ahead = [own[f"{split}/sc_grpo_minus_nearest/1/auroc/{MEAN}"] for split, own in (("dev", rows), ("test", opened))]
    assert "on dev they are ahead, too, but the interval reaches zero" in words
    assert ahead[0]["value"] < 0 <= ahead[0]["high"] and ahead[1]["high"] < 0
    assert "with four it takes away on test" in words
    assert opened[f"test/sc_grpo_minus_pa_sft/4/balanced_accuracy/{MEAN}"]["high"] < 0
    assert "nearest neighbours too" in words and opened["test/nearest/1/auroc/DeepPCB"]["high"] < 50
    beaten = [
        opened[name]["value"] >= opened[name.replace("/sc_grpo/", "/chance/")]["value"]
        for name in opened
        if name.startswith(("test/sc_grpo/1/location/", "test/sc_grpo/1/type/"))
    ]
    assert "on most test sets its place and type are no better" in words and sum(beaten) < len(beaten) / 2


def test_it_is_said_what_a_benchmark_measures_where_a_simple_predictor_does_well() -> None:
    rows = [
        ("even", "predictor", "file_size", 52, np.nan),
        ("even", "stage", "pa_sft", 70, np.nan),
        ("grainy", "predictor", "file_size", 80, 75),
        ("grainy", "predictor", "mean_brightness", 61, 48),
        ("grainy", "stage", "pa_sft", 79, np.nan),
        ("odd", "predictor", "classical_detector", 66, np.nan),
        ("odd", "stage", "pa_sft", 90, np.nan),
    ]
    judged = pd.DataFrame(rows, columns=["benchmark", "kind", "name", "value", "low"]).assign(high=np.nan)
    sentences = tables.what_they_measure(judged)
    assert [line.split(":")[0] for line in sentences[:3]] == ["even", "grainy", "odd"] and len(sentences) == 4
    assert "file size" in sentences[1] and "classical detector" in sentences[2]
    assert "brightness" not in " ".join(sentences)
    assert "grainy" in sentences[3] and "even" not in sentences[3] and "odd" not in sentences[3]


# -------------------------------------------------------------------------------------------- several seeds


@pytest.fixture(scope="module")
def pooled(finished_runs: list[Path]) -> dict[str, Any]:
    return results.pooled_metrics(finished_runs)


def test_pooled_levels_are_means_over_the_seeds(pooled: dict[str, Any], finished_runs: list[Path]) -> None:
    rows = results.by_name(pooled["rows"])
    for name in ("sc_grpo/balanced_accuracy/mean", "base/share_yes/mean", "course seconds"):
        each = [results.by_name(results.recorded(folder)["rows"])[name]["value"] for folder in finished_runs]
        assert rows[name]["value"] == pytest.approx(np.mean(each))
        assert rows[name]["seeds"] == dict(zip(("0", "1"), each, strict=True))
        assert (rows[name]["low"], rows[name]["high"]) == (min(each), max(each))
    assert rows["sc_grpo/seconds"]["value"] == 60.5
    judged = tables.judged_benchmarks(pooled, real=False)
    predictor = judged["kind"] == "predictor"
    assert judged.loc[predictor, ["low", "high"]].isna().all().all(), "a predictor needs no training seed"
    assert judged.loc[~predictor, ["low", "high"]].notna().all().all()


def test_pooled_differences_are_those_of_the_pairs(pooled: dict[str, Any], finished_runs: list[Path]) -> None:
    rows = results.by_name(pooled["rows"])
    name = "difference/sc_grpo-pa_sft/balanced_accuracy"
    for seed, folder in enumerate(finished_runs):
        answers = results.predictions(folder)
        wanted = paired_difference(answers["sc_grpo"], answers["pa_sft"])
        row = rows[f"{name}/seed {seed}"]
        assert (row["value"], row["low"], row["high"]) == (wanted.value, wanted.low, wanted.high)
    both = rows[f"{name}/pooled"]
    assert both["value"] == pytest.approx(np.mean([rows[f"{name}/seed {seed}"]["value"] for seed in (0, 1)]))
    assert both["high"] - both["low"] < rows[f"{name}/seed 0"]["high"] - rows[f"{name}/seed 0"]["low"]
    assert set(results.differences(pooled)["seed"]) == {"0", "1", "pooled"}


def test_what_one_run_lacks_is_left_out(finished_runs: list[Path], drawn_world: Path, tmp_path: Path) -> None:
    part = write_run(tmp_path / "s2", drawn_world, 2, stages=("base", "pa_sft", "sc_grpo"), logs=False)
    whole = Run("smoke", 0, shutil.copytree(finished_runs[0], tmp_path / "s0"))
    for run, seconds, notebooks in ((part, 5.0, 3), (whole, 700.0, 10)):
        timed = [{"name": "course seconds", "value": seconds, "n": notebooks, "unit": "s"}]
        record_metrics(run, results.BATCH, timed)
    for order in (("s0", "s2"), ("s2", "s0")):
        rows = results.by_name(results.pooled_metrics([tmp_path / name for name in order])["rows"])
        assert "sc_grpo/balanced_accuracy/mean" in rows and not any("control" in name for name in rows)
        assert rows["course seconds"]["seeds"] == {"0": 700.0}, "the time of some notebooks is not the course's"


def test_runs_that_cannot_be_compared_are_refused(finished_runs: list[Path], tmp_path: Path) -> None:
    other = results.recorded(finished_runs[1])
    other["provenance"]["parameters"]["pa_sft"]["learning_rate"] = 7
    write_json(tmp_path / "metrics.json", other)
    first = finished_runs[0]
    for folders, reason in (
        ([first, first], "seed 0"),
        ([], "at least one"),
        ([first, tmp_path], "other settings"),
        ([tmp_path / "nothing"], "missing"),
    ):
        with pytest.raises(UserError, match=reason):
            results.pooled_metrics(folders)


def test_command_prints_and_writes_the_pooled_results(finished_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "pooled.json"
    done = CliRunner().invoke(app, ["report", *map(str, finished_runs), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "SC-GRPO − PA-SFT" in done.output and "pooled" in done.output and "SC-GRPO beats PA-SFT" in done.output
    written = json.loads(out.read_text())
    assert [run["seed"] for run in written["provenance"]["runs"]] == [0, 1]
    assert all(set(row) >= {"name", "value", "low", "high", "n", "unit", "seeds"} for row in written["rows"])
    # What ships with the project does not count as found by named runs.
    own = agreement(measured(written, studies={}))
    assert set(own.loc[own["where"] != "Table 4", "verdict"]) == {NOT_MEASURED}
    assert in_short(own) in " ".join(done.output.split())


# ------------------------------------------------------------------------------------------------ documents


def test_command_without_runs_and_without_shipped_results_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "SHIPPED", tmp_path)
    done = CliRunner().invoke(app, ["report"])
    assert done.exit_code == 1 and "name run folders" in done.stderr


def test_zero_shot_of_any_model_is_what_the_course_measures() -> None:
    whole = results.by_name(shipped("metrics.json")["rows"])
    table = tables.one_shot_table().set_index("%")
    for stage in ("base", "pa_sft", "sc_grpo"):
        for shots, count in (("zero", 0), ("one", 1)):
            name = f"mini_{shots}_shot_{stage}.json"
            parameters = shipped(name)["provenance"]["parameters"]
            assert (parameters["shots"], parameters["data"]) == (count, "mini")
            cell = table.loc[f"balanced accuracy, {shots}-shot", results.STAGES[stage]]
            assert cell == interval_text(mean_row(name))
        row = whole[f"{stage}/balanced_accuracy/mean"]
        assert mean_row(f"mini_zero_shot_{stage}.json")["value"] == pytest.approx(row["seeds"]["0"])


def test_only_the_marked_part_of_the_readme_is_renewed(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{documents.MARKS[0]}\n\nof yesterday\n\n{documents.MARKS[1]}\n\nafter\n")
    assert documents.write_readme(tmp_path) == [path, tmp_path / documents.RESULTS]
    once = path.read_text()
    assert once.startswith("before\n") and once.endswith("after\n") and "of yesterday" not in once
    rows = [line for line in once.splitlines() if line.startswith("|")][2:]
    assert [row.split(" | ")[0] for row in rows] == ["| balanced accuracy", "| location right", "| type right"]
    level = results.by_name(shipped("metrics.json")["rows"])["sc_grpo/balanced_accuracy/mean"]
    page = (tmp_path / documents.RESULTS).read_text()
    assert interval_text(level) in once and interval_text(level) in page and "commit" in page
    for table in [block for block in page.split("\n\n") if block.startswith("|")]:
        assert len({line.count("|") for line in table.splitlines()}) == 1, "rows of one table have as many cells"
    documents.write_readme(tmp_path)
    assert path.read_text() == once
    path.write_text("no marks")
    with pytest.raises(UserError, match="lacks the lines"):
        documents.write_readme(tmp_path)


def test_values_that_are_not_defined_show_as_a_dash(finished_runs: list[Path]) -> None:
    metrics = results.recorded(finished_runs[0])
    for row in metrics["rows"]:
        row |= {"value": None, "low": None, "high": None}
    shown = tables.result_tables(metrics)
    assert len(shown) == 4
    for table in shown:
        assert not table.isna().to_numpy().any() and "nan" not in table.to_string()
