"""The course itself, executed on the smoke profile through the command line."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
import trl
from compare_metrics import untimed
from conftest import ROOT, read_json

from iadr1_lib import course, models, rewards, training
from iadr1_lib.course import sources
from iadr1_lib.files import Journal
from iadr1_lib.records import read_rows
from iadr1_lib.runs import Run
from iadr1_lib.training import trainers


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


def checks(folder: Path) -> dict[str, str]:
    """What the cell of each check printed, by notebook and number of the cell."""
    found = {}
    for path in (folder / "notebooks").glob("*.ipynb"):
        for place, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if "check" in cell.metadata.get("tags", ()):
                found[f"{path.stem}/{place}"] = "".join(output.get("text", "") for output in cell.outputs)
    return found


def test_exercises_are_passed_over_where_nobody_answers(smoke: Path) -> None:
    said = checks(smoke)
    assert said and [name for name, text in said.items() if "exercise not answered" not in text] == []


@pytest.mark.slow
def test_same_seed_gives_the_same_metrics_with_all_exercises_solved(smoke: Path, tmp_path: Path) -> None:
    """So all solutions pass their checks, and nothing depends on an answer."""
    done = iadr1_run(tmp_path, "--solutions")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    first, second = metrics(smoke), metrics(tmp_path / "smoke-s0")
    assert untimed(first) == untimed(second)
    said = checks(tmp_path / "smoke-s0")
    assert said.keys() == checks(smoke).keys()
    assert [name for name, text in said.items() if "exercise not answered" in text] == []
    assert first["provenance"]["data_hash"] == second["provenance"]["data_hash"]


# ------------------------------------------------------------------------------ other pictures, other models

SMALL = (
    "sc_grpo.max_completion_length=180",
    "sc_grpo.max_steps=1",
    "evaluation.max_new_tokens=8",
    "attack.max_steps=1",
)


@pytest.mark.slow
def test_all_notebooks_run_on_own_pictures_and_go_on(shared: Path, tmp_path: Path) -> None:
    tiles = str(shared / "samples" / "MagneticTile")
    done = iadr1_run(tmp_path, "--data", tiles)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "not zero-shot" in done.stdout
    folder = tmp_path / "smoke-s0-MagneticTile"
    images = {
        part: set(pd.read_json(folder / "source" / f"{part}.jsonl", lines=True)["image"]) for part in sources.PARTS
    }
    assert all(a.isdisjoint(b) for a, b in combinations(images.values(), 2)) and all(images.values())
    records = read_rows(folder / "expert_ad" / "pa_sft.json")
    assert {row["images"] for row in records} == images["pa_sft"] and all(tiles in row["images"] for row in records)
    assert {row["benchmark"] for row in Journal(folder / "predictions" / "sc_grpo.jsonl").rows()} == {"MagneticTile"}
    again = iadr1_run(tmp_path, "--folder", str(folder))
    assert again.stdout.count("up to date,") == len(list((ROOT / "notebooks").glob("[0-9]*.ipynb"))), again.stdout


def with_model(runs: Path, model: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`iadr1 run` with another model and LoRA, a step and short answers."""
    settings = [word for setting in (*SMALL, "model.lora_rank=4", "model.lora_alpha=8") for word in ("--set", setting)]
    return iadr1_run(runs, "--model", str(model), *settings, *words)


@pytest.mark.slow
def test_all_notebooks_run_with_another_model(miniature: Callable[[str], Path], tmp_path: Path) -> None:
    done = with_model(tmp_path, miniature("qwen2_5_vl"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_vl"])
def test_both_stages_run_in_notebooks_with_every_class(
    family: str, miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    done = with_model(tmp_path, miniature(family), "--only", "02,03,04,07")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


# ------------------------------------------------------------------------------ the trainers that notebooks show

NOT_SHOWN = re.compile(  # where results lie and what is printed; how rows reach the trainer; checkpoints
    r"output_dir|logging|log_completions|save_|data_seed|disable_tqdm|dataloader|remove_unused|ddp_|run_name|report_to|"
    r"gradient_checkpointing_kwargs|accelerator_config"
)


def recorder(trainer: type) -> type:
    """Stands for a trainer of TRL: keeps what it is given, by the names of the real one's parameters."""

    class Recorder:
        last: dict[str, Any] = {}

        def __init__(self, *given: Any, **named: Any) -> None:
            Recorder.last = dict(inspect.signature(trainer.__init__).bind(self, *given, **named).arguments)
            self.args, self.train_dataset = Recorder.last["args"], Recorder.last["train_dataset"]
            self.model = self.ref_model = None
            self.is_deepspeed_enabled = self.is_fsdp_enabled = False

    return Recorder


@pytest.mark.parametrize("number, stage, kind", [("04", "pa_sft", "SFTTrainer"), ("07", "sc_grpo", "GRPOTrainer")])
def test_the_trainer_that_a_notebook_shows_is_the_library_s(
    smoke: Path, number: str, stage: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All settings, the first rows and the rewards are the same, and LoRA is (not) used by both."""
    stand_in = recorder(getattr(trl, kind))
    monkeypatch.setattr(trl, kind, stand_in)
    monkeypatch.setattr(trainers, kind, stand_in)
    monkeypatch.setattr(trainers, "_run", lambda *args: None)
    monkeypatch.setattr(trainers.models, "speed_up_generation", lambda *args: None)
    run = Run("smoke", 0, smoke)
    course.train_stage(run, stage, force=True)
    used = stand_in.last

    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    shows = re.compile(rf"= {kind.replace('Trainer', 'Config')}\(|= {kind}\(")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if shows.search(cell.source)]
    assert len(cells) == 2  # the configuration and the trainer
    names: dict[str, Any] = {"run": run, "course": course, "seed": 0, "torch": torch, "rewards": rewards}
    if stage == "pa_sft":
        settings = run.profile.settings("pa_sft", training.PaSftSettings)
        base, processor = course.stage_model(run, "base"), models.load_processor(course.stage_model(run, "base"))
        rows = read_rows(run.path("expert_ad", "pa_sft.json"))
        names |= {"sft": settings, "base_folder": base, "processor": processor, "models": models, "rows": rows}
        names["rows_for_trl"] = lambda some: training.pa_sft_dataset(some, training.eos_suffix(processor))
    else:
        grpo = run.profile.settings("sc_grpo", training.ScGrpoSettings)
        names |= {"grpo": grpo, "G": grpo.num_generations, "per_step": grpo.share, "mode": grpo.rewards}
        names |= {"pa_sft_folder": course.stage_model(run, "pa_sft")}
        names["rows"] = read_rows(run.path("expert_ad", "sc_grpo.json"))
    for cell in cells:
        exec(cell, names)
    shown = stand_in.last
    ours, theirs = (
        {k: v for k, v in given["args"].to_dict().items() if not NOT_SHOWN.search(k)} for given in (shown, used)
    )
    assert ours == theirs
    assert [shown["train_dataset"][n] for n in range(3)] == [used["train_dataset"][n] for n in range(3)]
    assert shown.get("peft_config") == used.get("peft_config")
    names_of = [[function.__name__ for function in given.get("reward_funcs", [])] for given in (shown, used)]
    assert names_of[0] == names_of[1]
