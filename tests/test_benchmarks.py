"""The paper's six test sets: a copy is asked about as a whole, and the model's row stands in the paper's Table 1."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import read_json
from pictures import one_sentence, released_tests
from test_cli import complaint, iadr1
from test_hub import go_offline

from iadr1_lib.data import SIX, paper_benchmarks
from iadr1_lib.evaluation import MEAN
from iadr1_lib.reporting import beside_table_one
from iadr1_lib.reporting.claims import PAPER_SETS, paper_table
from iadr1_lib.runs import base_model_dir

NAMES = ("DS-MVTec", "VisA", "MPDD", "DAGM", "DTD", "SDD")  # of the released index files


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return released_tests(tmp_path / "Industrial_test", [*NAMES, "BTAD"])


def test_a_copy_has_the_six_by_the_paper_s_names(copy: Path) -> None:
    table = paper_benchmarks(copy)
    assert {sample.benchmark for sample in table} == set(SIX) and len(table) == 24
    of_set = {sample.benchmark: Path(sample.image).relative_to(copy).parts[0] for sample in table}
    assert [of_set[name] for name in SIX] == list(NAMES)
    for name in ("DAGM", "SDD"):
        (copy / f"test_{name}_format.json").unlink()
    one_sentence(lambda: paper_benchmarks(copy), copy, "lacks DAGM, KolektorSDD")


def test_evaluate_asks_all_six_and_prints_table_1(copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    words = ("evaluate", "--model", base_model_dir(), "--benchmarks", "all", "--out", out)
    result = iadr1(*words, "--data", copy, "--prompt", "yes-no", "--max-new-tokens", 4)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.with_suffix(".predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and {row["benchmark"] for row in rows} == set(SIX)
    names = {row["name"] for row in read_json(out)["rows"]}
    for name in (*SIX, MEAN):
        assert f"Industrial_test/balanced_accuracy/{name}" in names
    assert "24 pictures" in result.stdout
    lines = [line for line in result.stdout.partition("Table 1")[2].splitlines() if "│" in line]
    (own,) = [line for line in lines if "ours" in line]
    assert base_model_dir().name in own and sum("iad-r1" in line for line in lines) == 4
    (copy / "test_VisA_format.json").unlink()
    before = out.read_bytes()
    assert "lacks VisA" in complaint(iadr1(*words, "--data", copy)) and out.read_bytes() == before


def test_without_a_copy_the_hub_is_asked_and_without_either_it_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iadr1_lib.data.hub.project_root", lambda: tmp_path)
    go_offline(monkeypatch, ConnectionResetError(104, "Connection reset by peer"))
    words = ("evaluate", "--model", base_model_dir())
    assert "yanhui01/Industrial_test" in complaint(iadr1(*words, "--benchmarks", "all"))
    told = complaint(iadr1(*words), 2)
    assert "--data" in told and "--benchmarks" in told
    assert iadr1(*words, "--benchmarks", "some").exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("average", [20.0, 70.04, 99.0])
def test_a_row_stands_in_table_1_by_its_average(average: float) -> None:
    values = {name: average + number for number, name in enumerate(SIX)} | {MEAN: average}
    rows = [{"benchmark": name, "metric": "balanced_accuracy", "value": value} for name, value in values.items()]
    rows += [{"benchmark": name, "metric": "location", "value": 1.0} for name in SIX]
    table, paper = beside_table_one(pd.DataFrame(rows), "runs/x/model"), paper_table(1)
    assert len(table) == len(paper) + 1
    assert table["average"].is_monotonic_decreasing
    place = table.index[table["model"] == "runs/x/model"].item()
    assert place == (paper["average"] > average).sum()
    assert not table.duplicated(["group", "model", "parameters"]).any()
    assert table.loc[place, PAPER_SETS].tolist() == [round(values[name], 1) for name in SIX]
