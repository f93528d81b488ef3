"""The course itself, executed on the smoke profile through the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from compare_metrics import untimed
from conftest import ROOT, read_json


def iadr1_run(runs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`iadr1 run --profile smoke` from a folder outside the project, in its own process."""
    environment = os.environ | {"IADR1_RUNS": str(runs), "IADR1_ROOT": str(ROOT), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from iadr1_lib.cli import main; main()", "run", "--profile", "smoke"]
    return subprocess.run([*command, *words], cwd=runs, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the smoke course, executed once."""
    runs = tmp_path_factory.mktemp("runs")
    done = iadr1_run(runs)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return runs / "smoke-s0"


def metrics(folder: Path) -> dict[str, Any]:
    return read_json(folder / "metrics.json")


def test_every_notebook_is_executed(smoke: Path) -> None:
    wanted = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert sorted(path.name for path in (smoke / "notebooks").glob("*.ipynb")) == wanted
    for name in wanted:
        notebook = nbformat.read(smoke / "notebooks" / name, as_version=4)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source)


def test_no_table_swallows_the_tags_of_an_answer(smoke: Path) -> None:
    """A browser shows `<location>top</location>` in a table as "top"."""
    for path in (smoke / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                table = output.get("data", {}).get("text/html", "")
                assert not re.search(r"</?(think|location|type|answer)>", table), f"{path.name}: {cell.source}"


def test_metrics_have_rows_from_the_course_and_their_provenance(smoke: Path) -> None:
    found = metrics(smoke)
    notebooks = {row["notebook"] for row in found["rows"]}
    assert {"batch", "08_evaluation"} <= notebooks
    for row in found["rows"]:
        assert set(row) >= {"notebook", "name", "value", "low", "high", "n", "unit"}
        assert row["value"] is not None or row["reason"]
    assert {"parameters", "seed", "versions", "hardware", "commit", "data_hash", "time"} <= set(found["provenance"])


def test_course_is_one_call_and_stays_below_its_memory(smoke: Path) -> None:
    batch = {row["name"]: row["value"] for row in metrics(smoke)["rows"] if row["notebook"] == "batch"}
    assert batch["from scratch"] == 1
    assert batch["peak memory"] < 6 * 1024


def test_report_is_one_page_that_needs_no_other_file(smoke: Path) -> None:
    page = (smoke / "report.html").read_text(encoding="utf-8")
    assert "<html" in page.lower()
    sources = re.findall(r"""<(?:img|script|link)[^>]*(?:src|href)=["']([^"']+)""", page)
    assert [source for source in sources if not source.startswith(("data:", "https://"))] == []


def test_second_run_finds_all_up_to_date(smoke: Path) -> None:
    before = metrics(smoke)["rows"]
    done = iadr1_run(smoke.parent)
    count = len(list((ROOT / "notebooks").glob("[0-9]*.ipynb")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("up to date,") == count, done.stdout
    assert metrics(smoke)["rows"] == before


@pytest.mark.slow
def test_same_seed_gives_the_same_metrics(smoke: Path, tmp_path: Path) -> None:
    done = iadr1_run(tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    first, second = metrics(smoke), metrics(tmp_path / "smoke-s0")
    assert untimed(first) == untimed(second)
    assert first["provenance"]["data_hash"] == second["provenance"]["data_hash"]
