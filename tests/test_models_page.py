"""docs/models.md: every command in it, carried out up to the point where the weights would be loaded."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
from test_families import CASES, MATRIX
from typer.testing import CliRunner

from iadr1_lib.cli.app import app
from iadr1_lib.models import MODELS, loading
from iadr1_lib.runs import MODEL, Choices, Run, load_profile
from iadr1_lib.training import launch, trainers
from iadr1_lib.training.stages import StageFolder

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
TRAIN = re.findall(r"`(iadr1 train [^`]*)`", PAGE) + re.findall(r"^(iadr1 train .*)$", PAGE, re.MULTILINE)


class Reached(Exception):
    """The weights would be loaded now."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the hub's data set: pictures and both kinds of records."""
    folder = tmp_path_factory.mktemp("Expert-AD")
    tiny_vlm.write_records(tiny_vlm.draw_samples(folder / "images", count=10), folder)
    return folder


def test_the_page_has_both_stages_of_all_models_in_both_profiles() -> None:
    wanted = {
        f"iadr1 train --stage {stage} --profile {profile} --model {name}"
        for stage in ("pa-sft", "sc-grpo")
        for profile in ("gpu", "paper")
        for name, model in MODELS.items()
        if model.hub_id
    }
    assert wanted <= set(TRAIN)


@pytest.mark.parametrize("line", TRAIN)
def test_a_training_command_reaches_the_loading_of_its_weights(
    line: str,
    miniature: Callable[[str], Path],
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = shlex.split(line)[1:]
    name = words[words.index("--model") + 1]
    model = miniature(MODELS[name].family.model_type)
    loaded: list[Any] = []

    def stop(*args: Any, **kwargs: Any) -> Any:
        loaded.append((args, kwargs))
        raise Reached

    monkeypatch.setenv("IADR1_RUNS", str(tmp_path))
    monkeypatch.setattr("iadr1_lib.data.hub.download_once", lambda name, *rest, **options: records)
    monkeypatch.setattr(loading, "model_folder", lambda settings: model)
    monkeypatch.setattr(launch, "launch", lambda engine, arguments: launched.append((engine, arguments)))
    monkeypatch.setattr("iadr1_lib.evaluation.vllm_check.require_passed", lambda name: None)
    monkeypatch.setattr("iadr1_lib.training.launch.sees_gpu", lambda: True)
    monkeypatch.setattr(launch, "require_vllm", lambda: "0.31.0")
    monkeypatch.setattr(trainers, "SFTTrainer", stop)
    monkeypatch.setattr(trainers, "GRPOTrainer", stop)
    launched: list[Any] = []
    profile = words[words.index("--profile") + 1]
    own = load_profile(profile).section("model")["name"] == name
    run = Run(profile, 0, choices=Choices(settings={} if own else {MODEL: name}))
    start = run.path("pa_sft", "model")
    start.mkdir(parents=True)
    for file in model.iterdir():
        (start / file.name).write_bytes(file.read_bytes())

    CliRunner().invoke(app, words)
    if launched:
        engine, arguments = launched.pop()
        launch.config_file(engine.config)
        # What each of the launched processes does.
        monkeypatch.setattr(launch, "is_launched", lambda: True)
        words = arguments
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, Reached), result.output
    (_, options) = loaded[-1]
    config = options["args"]
    assert config.max_length is None if "pa-sft" in words else config.max_completion_length == 512
    assert config.bf16
    grpo = "sc-grpo" in words  # a miniature's step fits in one pass
    processes = {"gpu": 1, "paper": 4}[run.profile.name]
    assert config.per_device_train_batch_size * processes >= (24 if grpo else 8)
    assert config.gradient_accumulation_steps == 1 and not config.gradient_checkpointing
    assert (options["peft_config"] is not None) == ("gpu" in words)
    stage = run.path(words[words.index("--stage") + 1].replace("-", "_"))
    said = json.loads((StageFolder(stage).work / "begun.json").read_text())
    assert said["fingerprint"]


def test_the_matrix_of_the_page_is_that_of_the_tests() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `") and "passed" in line]
    assert len(rows) * len(CASES) == len(MATRIX)
    assert all(row.count("passed") == len(CASES) for row in rows)
