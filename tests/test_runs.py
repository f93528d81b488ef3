"""Profiles, run folders, the metrics record and the batch, the batch with real kernels on tiny notebooks."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, write_notebook
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from iadr1_lib import runs
from iadr1_lib.course import batch
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.files import Journal, read_json, read_json_lines, write_json, write_text
from iadr1_lib.runs import Run, load_profile, profile_names
from iadr1_lib.runs.metrics import _metric_row

Course = Callable[..., Path]


@dataclass(frozen=True)
class TinySettings:
    learning_rate: float
    steps: int
    warmup: int = 0


# ------------------------------------------------------------------------------------- places, profiles


def test_root_is_found_from_a_folder_inside_else_the_checkout(
    course: Course, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = course()
    monkeypatch.delenv("IADR1_ROOT")
    monkeypatch.chdir(project / "notebooks")
    assert runs.project_root() == project.resolve()
    monkeypatch.chdir(tmp_path)
    assert runs.project_root() == root
    monkeypatch.setenv("IADR1_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="IADR1_ROOT"):
        runs.project_root()


class TinyModel(BaseModel):
    learning_rate: float
    steps: int


def test_profile_gives_values_sources_and_numbers_in_any_notation(course: Course) -> None:
    path = course() / "data" / "profiles" / "tiny.yaml"
    path.write_text(path.read_text() + 'engine:\n  vllm: {value: off, source: "why: a word"}\n')
    profile = load_profile("tiny")
    assert profile.settings("training", TinySettings) == TinySettings(1e-4, 3)
    assert profile.settings("training", TinyModel) == TinyModel(learning_rate=1e-4, steps=3)
    assert profile.sources["training.learning_rate"] == "paper, section 4.1"
    assert profile.section("training")["learning_rate"] == 1e-4 and profile.section("engine")["vllm"] == "off"
    assert len(profile.table()) == 3 + len(profile.section("world"))


def test_unknown_profile_lists_the_others(course: Course) -> None:
    course()
    with pytest.raises(WrongUse, match="huge.*tiny"):
        load_profile("huge")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("world: {images: {value: 4}}", "world.images"),
        ("world: {images: {value: 4, source: ' '}}", "world.images"),
        ("world: {images: 4}", "world.images"),
        ("world: 4", "sections"),
        ("world: {images: [", "no YAML"),
    ],
)
def test_a_value_without_source_is_refused(course: Course, text: str, named: str) -> None:
    path = course() / "data" / "profiles" / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        load_profile("bad")
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("learning_rat: {value: 1, source: s}", "learning_rat"),
        ("learning_rate: {value: 1, source: s}", "steps is missing"),
        ("learning_rate: {value: fast, source: s}\n  steps: {value: 1, source: s}", "learning_rate is wrong"),
    ],
)
def test_settings_name_the_wrong_key(course: Course, text: str, named: str) -> None:
    path = course() / "data" / "profiles" / "bad.yaml"
    path.write_text(f"training:\n  {text}\n")
    with pytest.raises(UserError, match=named):
        load_profile("bad").settings("training", TinySettings)
    with pytest.raises(UserError, match="no section control"):
        load_profile("bad").section("control")


@pytest.mark.parametrize("name", profile_names())
def test_every_value_of_a_shipped_profile_is_stated_somewhere_or_has_its_reason(name: str) -> None:
    for key, source in load_profile(name).sources.items():
        where, _, what = source.partition(" ")
        assert where in ("paper,", "released", "why:") and what.strip(), f"{name}: {key} says {source!r}"


def test_run_folder_and_what_is_missing_in_it(course: Course) -> None:
    project = course()
    run = Run("tiny", 3)
    assert run.folder == (project / "out" / "tiny-s3").resolve()
    assert Run("tiny", 3, project / "else").path("a", "b") == (project / "else" / "a" / "b").resolve()
    with pytest.raises(UserError, match=r"04_pa_sft.*iadr1 run --profile tiny --seed 3 --only 04"):
        run.require("pa_sft/model", "04_pa_sft")
    run.path("pa_sft", "model").mkdir(parents=True)
    with pytest.raises(UserError):  # an empty folder holds no model
        run.require("pa_sft/model", "04_pa_sft")
    run.path("pa_sft", "model", "config.json").write_text("{}")
    assert run.require("pa_sft/model", "04_pa_sft") == run.path("pa_sft", "model")


def test_seed_everything_repeats_in_a_process_that_had_not_loaded_torch() -> None:
    code = """if True:
        import random, numpy, iadr1_lib.runs
        iadr1_lib.runs.seed_everything(7)
        import torch
        print(random.random(), numpy.random.rand(), float(torch.rand(())))
    """
    numbers = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(numbers) == 1 and len(numbers.pop().split()) == 3


def test_provenance_names_the_gpu_though_nothing_has_loaded_torch(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    (tmp_path / "torch").mkdir()
    fake = "class cuda:\n    is_available = lambda: True\n    get_device_name = lambda: 'a GPU'\n"
    (tmp_path / "torch" / "__init__.py").write_text(fake)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code = "from iadr1_lib import runs; print(runs.hardware()['device'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "a GPU", done.stderr


def test_rewards_course_and_cli_load_no_torch() -> None:
    code = "import sys, iadr1_lib.rewards, iadr1_lib.course, iadr1_lib.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------------------------- metrics


def test_metrics_replace_a_notebooks_rows_and_keep_the_others(course: Course) -> None:
    course()
    run = Run("tiny", 0)
    runs.record_metrics(run, "01_b", [{"name": "x", "value": 1}])
    runs.record_metrics(run, "00_a", [{"name": "z", "value": 2.0, "low": 1.0, "high": 3.0, "n": 9, "unit": "%"}])
    runs.record_metrics(run, "01_b", [{"name": "y", "value": np.float32(0.5)}], {"force": True})
    metrics = runs.read_metrics_file(run.path("metrics.json"), of_run=True)
    rows, block = metrics["rows"], metrics["provenance"]
    assert [(row["notebook"], row["name"], row["value"]) for row in rows] == [
        ("00_a", "z", 2.0),
        ("01_b", "y", 0.5),
    ]
    assert {"parameters", "seed", "versions", "hardware", "commit", "data_hash", "time"} <= set(block)
    assert block["parameters"]["training"]["steps"] == 3
    assert block["notebooks"]["01_b"]["parameters"] == {"force": True}


@given(st.floats())
def test_no_number_that_json_lacks_is_written(value: float) -> None:
    row = _metric_row("00_a", {"name": "x", "value": value, "low": value})
    text = json.dumps(row, allow_nan=False)
    if math.isfinite(value):
        assert json.loads(text)["value"] == value
    else:
        assert row["value"] is None and row["low"] is None and row["reason"]


def test_metrics_rows_are_checked(course: Course) -> None:
    course()
    run = Run("tiny", 0)
    for rows in ([{"name": "x"}], [{"name": "x", "value": 1, "colour": 2}], [{"name": "x", "value": 1}] * 2):
        with pytest.raises(ValueError):
            runs.record_metrics(run, "00_a", rows)
    assert not run.path("metrics.json").exists()


def test_broken_metrics_file_is_named(course: Course) -> None:
    course()
    run = Run("tiny", 0)
    write_text(run.path("metrics.json"), '{"rows": [')
    with pytest.raises(UserError, match=r"metrics\.json"):
        runs.record_metrics(run, "00_a", [{"name": "x", "value": 1}])


def test_data_hash_sees_names_and_contents_only(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "world" / "a").mkdir(parents=True)
        (tmp_path / place / "world" / "a" / "1.png").write_bytes(b"x")
    here, there = tmp_path / "here" / "world", tmp_path / "there" / "world"
    assert runs.data_hash([here]) == runs.data_hash([there])
    (there / "a" / "1.png").write_bytes(b"y")
    assert runs.data_hash([here]) != runs.data_hash([there])
    (there / "a" / "1.png").write_bytes(b"x")
    (there / "a" / "1.png").rename(there / "a" / "2.png")
    assert runs.data_hash([here]) != runs.data_hash([there])


# ------------------------------------------------------------------------------------- batch

COUNT = """
from pathlib import Path
place = Path(run_folder) / "{0}.txt"
place.parent.mkdir(parents=True, exist_ok=True)
place.write_text((place.read_text() if place.exists() else "") + "x")
"""


def times_run(run: Run, name: str) -> int:
    path = run.path(f"{name}.txt")
    return len(path.read_text()) if path.exists() else 0


def batch_metrics(run: Run) -> dict[str, float]:
    rows = read_json(run.path("metrics.json"))["rows"]
    return {row["name"]: row["value"] for row in rows if row["notebook"] == "batch"}


def statuses(outcomes: list[batch.Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def test_batch_runs_skips_and_follows_changes(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("00_a", "01_b", "02_c")
    project = course(
        needs={"02_c": ["00_a"]},
        makes={"01_b": ["never.txt|b.txt"]},
        **{name: COUNT.format(name[3:]) for name in names},
    )
    monkeypatch.chdir(project.parent)  # any working directory will do
    run = Run("tiny", 0)
    lines: list[str] = []

    assert statuses(batch.run_notebooks(run, say=lines.append)) == [batch.DONE] * 3
    assert len(lines) == 6  # a line at the start and one at the end of each
    rows = batch_metrics(run)
    assert rows["from scratch"] == 1 and rows["course seconds"] > 0 and rows["peak memory"] > 20
    assert all(run.path("notebooks", f"{name}.ipynb").exists() for name in names)

    assert statuses(batch.run_notebooks(run, say=lines.append)) == [batch.UP_TO_DATE] * 3

    # a notebook that runs again makes those stale that need it, here 01 but not 00
    write_notebook(project / "notebooks" / "00_a.ipynb", COUNT.format("a") + "# changed")
    assert statuses(batch.run_notebooks(run, say=lines.append)) == [batch.DONE] * 3
    write_notebook(project / "notebooks" / "01_b.ipynb", COUNT.format("b") + "# changed", {"makes": ["b.txt"]})
    assert statuses(batch.run_notebooks(run, say=lines.append)) == [batch.UP_TO_DATE, batch.DONE, batch.UP_TO_DATE]

    run.path("b.txt").unlink()  # what it makes has vanished
    assert statuses(batch.run_notebooks(run, "01", say=lines.append)) == [batch.DONE]
    assert statuses(batch.run_notebooks(run, ["02_c"], force=True, say=lines.append)) == [batch.DONE]
    assert [times_run(run, name) for name in "abc"] == [2, 1, 3]
    rows = batch_metrics(run)
    assert rows["from scratch"] == 0


def test_what_a_result_depends_on_makes_it_stale(course: Course) -> None:
    project = course(**{"00_a": "pass"})
    notebook = batch.find_notebooks()[0]
    before = batch.Manifest(Run("tiny", 0)).own_hash(notebook)
    assert batch.Manifest(Run("tiny", 1)).own_hash(notebook) != before
    for path in ("iadr1_lib/new.py", "data/mini_base/model.safetensors", "data/profiles/tiny.yaml"):
        (project / path).parent.mkdir(exist_ok=True)
        with (project / path).open("a") as file:
            file.write("# changed\n")
        after = batch.Manifest(Run("tiny", 0)).own_hash(notebook)
        assert after != before, path
        before = after


def test_failure_is_told_and_stops_only_what_depends_on_it(course: Course) -> None:
    course(
        needs={"01_b": [], "02_c": ["00_a"], "03_d": ["02_c"]},
        **{"00_a": "raise ValueError('no such\\nluck')", "01_b": "pass", "02_c": "pass", "03_d": "pass"},
    )
    run = Run("tiny", 0)
    lines: list[str] = []
    outcomes = batch.run_notebooks(run, say=lines.append)
    assert statuses(outcomes) == [batch.FAILED, batch.DONE, batch.NOT_RUN, batch.NOT_RUN]
    line = next(line for line in lines if "failed" in line)
    assert "ValueError: no such luck" in line and str(run.path("notebooks", "00_a.ipynb")) in line
    assert statuses(batch.run_notebooks(run, "00", say=lines.append)) == [batch.FAILED]


def test_kernel_that_dies_is_a_failure(course: Course) -> None:
    course(**{"00_a": "import os; os._exit(1)"})
    outcomes = batch.run_notebooks(Run("tiny", 0), say=lambda line: None)
    assert statuses(outcomes) == [batch.FAILED] and "kernel died" in outcomes[0].note


def test_kernel_is_this_interpreter_whatever_is_registered(
    course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": ["/nowhere/python"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    course(**{"00_a": f"import sys\nassert sys.executable == {sys.executable!r}, sys.executable"})
    assert statuses(batch.run_notebooks(Run("tiny", 0), say=lambda line: None)) == [batch.DONE]


def test_notebook_gets_its_parameters_and_the_root_as_working_directory(course: Course) -> None:
    project = course()
    run = Run("tiny", 5)
    code = f"""
    from pathlib import Path
    assert (profile, seed, run_folder, force) == ("tiny", 5, {str(run.folder)!r}, True)
    assert Path.cwd() == Path({str(project)!r}).resolve()
    """
    write_notebook(project / "notebooks" / "00_a.ipynb", code)
    outcomes = batch.run_notebooks(run, force=True, say=lambda line: None)
    assert statuses(outcomes) == [batch.DONE], outcomes


def test_unknown_notebooks_are_wrong_use(course: Course) -> None:
    course()
    with pytest.raises(UserError, match="no numbered notebook"):
        batch.run_notebooks(Run("tiny", 0))
    course(**{"00_a": "pass"})
    for only in ("07", "00,7", ""):
        with pytest.raises(WrongUse, match="00_a"):
            batch.run_notebooks(Run("tiny", 0), only)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_goes_on_where_it_stopped(course: Course, root: Path, number: signal.Signals) -> None:
    wait = COUNT.format("b") + "\nimport time\nif len(place.read_text()) == 1:\n    time.sleep(120)\n"
    project = course(**{"00_a": COUNT.format("a"), "01_b": wait, "02_c": COUNT.format("c")})
    run = Run("tiny", 0)
    command = [sys.executable, "-c", "from iadr1_lib.cli import main; main()", "run", "--profile", "tiny"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
        command,
        cwd=project.parent,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job has it ignored
    )
    deadline = time.monotonic() + 60
    while not run.path("b.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    if number == signal.SIGINT:
        assert complaint.strip().splitlines()[-1] == "iadr1: stopped; run the same command to go on"
    _, alive = psutil.wait_procs(kernels, timeout=15)
    assert not alive, "a kernel outlived its batch"

    outcomes = batch.run_notebooks(run, say=lambda line: None)
    assert statuses(outcomes) == [batch.UP_TO_DATE, batch.DONE, batch.DONE]
    assert [times_run(run, name) for name in "abc"] == [1, 2, 1]


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_text_of_another_system_is_read_or_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": "é"}', encoding=encoding)
    if encoding == "utf-8-sig":
        assert read_json(path) == {"a": "é"}
        return
    for read in (read_json, read_json_lines, lambda path: read_json_lines(path, unfinished=True)):
        with pytest.raises(UserError, match=r"a\.json is .*UTF-.*save it as UTF-8"):
            read(path)


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_json(tmp_path / "metrics.json", {"old": 1})

    def full(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="full"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append({"a": 1})
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="full"):
        journal.append({"a": 2})


def test_json_lines_are_read_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": "\u2028"}\r\n\n[1]'.encode())
    assert read_json_lines(path) == [(1, {"a": "\u2028"}), (3, [1])]
    path.write_bytes(b"{}\n{'a'}\n{}\n")
    with pytest.raises(UserError, match=r"rows.jsonl, line 2 is no JSON"):
        read_json_lines(path, unfinished=True)
    for rest in (b'{"a": 1', b'{"a": "\xc3'):
        path.write_bytes(b"{}\n" + rest)
        assert read_json_lines(path, unfinished=True) == [(1, {})]
        with pytest.raises(UserError, match=r"rows.jsonl.* line 2"):
            read_json_lines(path)


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_journal_goes_on_after_its_last_whole_row(tmp_path: Path, ascii_only: bool) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert Journal(path).rows() == []
    Journal(path, ascii_only).append({"a": "é"}, {"b": 1})
    assert path.read_text(encoding="utf-8").startswith('{"a": "\\u00e9"}\n' if ascii_only else '{"a": "é"}\n')
    for rest, rows in ((b'{"c": "\xc3', 2), (b'{"c": 1}', 4)):  # broken off inside a row, and between row and line end
        path.write_bytes(path.read_bytes() + rest)
        journal = Journal(path, ascii_only)
        assert len(journal.rows()) == rows
        journal.append({"d": 2})
        assert len(journal.rows()) == rows + 1 and journal.rows()[-1] == {"d": 2}
    journal.replace([{"e": 3}])
    assert path.read_text() == '{"e": 3}\n'
