"""Passes of a step: left to the memory, halved when they do not fit, and no matter to what is learnt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_vlm
import torch
from test_training import GRPO, SFT, consistency_reward, far
from transformers import Trainer

from iadr1_lib.errors import UserError
from iadr1_lib.models import ModelSettings
from iadr1_lib.training import fitting, trainers
from iadr1_lib.training.stages import Inputs, StageFolder, fingerprint

Train = Callable[..., Path]
AUTO = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": None, "per_device_step_size": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_vlm.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(params=["pa_sft", "sc_grpo"])
def stage(request: pytest.FixtureRequest, world: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Train, Any]:
    """train(out, settings, ...) of one stage, and settings for it, in passes of 4."""
    train: Any = getattr(trainers, f"train_{request.param}")
    honest = trainers.rewards.reward_functions
    monkeypatch.setattr(trainers.rewards, "reward_functions", lambda *args: [consistency_reward, *honest(*args)[1:]])
    settings = replace(SFT if request.param == "pa_sft" else GRPO, keep="last")
    return lambda out, *args, **options: train(world["model"], world[request.param], out, *args, **options), settings


def facts(model: Path) -> dict[str, Any]:
    return json.loads((model.parent / "stage.json").read_text())


def no_room(monkeypatch: pytest.MonkeyPatch, step: int, batch: int, checkpointing: bool = False) -> list[int]:
    """At this step passes of more than `batch` samples do not fit, or none without checkpointing; the sizes tried."""
    honest, tried = Trainer.training_step, []

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        size = self.args.per_device_train_batch_size
        if self.state.global_step == step:
            tried.append(size)
            if size > batch or (checkpointing and not self.args.gradient_checkpointing):
                raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    return tried


@pytest.mark.parametrize(("step", "start"), [(2, "checkpoint-2"), (0, "the beginning")])
def test_a_step_that_does_not_fit_is_taken_in_smaller_passes_to_the_same_weights(
    stage: tuple[Train, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    start: str,
) -> None:
    train, settings = stage
    small = train(tmp_path / "small", settings.in_passes(2))
    tried = no_room(monkeypatch, step, batch=2)
    found = train(tmp_path / "large", settings)
    assert tried == [4, 2, 2]
    assert f"goes on from {start} with per_device_train_batch_size 2" in capsys.readouterr().out
    assert far(small, found) <= 1e-5
    assert facts(found)["steps"] == facts(small)["steps"]
    assert facts(found)["settings"]["gradient_accumulation_steps"] == 2
    assert facts(found)["fingerprint"] == facts(small)["fingerprint"]


def test_checkpointing_comes_last_and_then_one_sentence(
    stage: tuple[Train, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, settings = stage
    small = settings.in_passes(1)
    whole = train(tmp_path / "whole", small)
    no_room(monkeypatch, step=0, batch=1, checkpointing=True)
    found = train(tmp_path / "found", settings)
    assert facts(found)["model"]["gradient_checkpointing"] and far(whole, found) <= 1e-5
    no_room(monkeypatch, step=0, batch=0)
    with pytest.raises(UserError, match="does not hold one sample"):
        train(tmp_path / "none", settings, model=ModelSettings(gradient_checkpointing=True))


def test_a_stage_that_is_trained_again_goes_on_too(
    stage: tuple[Train, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, settings = stage
    first = train(tmp_path, settings)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    no_room(monkeypatch, step=2, batch=2)
    again = train(tmp_path, settings, force=True)
    assert "goes on from checkpoint-2" in capsys.readouterr().out
    assert (again / "model.safetensors").stat().st_mtime_ns != stamp
    assert facts(again)["settings"]["per_device_train_batch_size"] == 2


def test_of_several_processes_none_goes_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "process_state", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(UserError, match="one of 2 processes: set per_device_train_batch_size 2 in the profile"):
        fitting.smaller(Inputs(tmp_path, tmp_path, SFT, ModelSettings(), 0), StageFolder(tmp_path))


def test_passes_are_chosen_and_change_no_weight(
    stage: tuple[Train, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, settings = stage
    fixed = train(tmp_path / "fixed", settings)
    chosen = train(tmp_path / "chosen", replace(settings, **AUTO), model=ModelSettings(gradient_checkpointing="auto"))
    assert "1 x 4 " in capsys.readouterr().out
    speeds = [float(row["tokens_per_second"]) for row in tiny_vlm.read_csv(tmp_path / "chosen" / "log.csv")]
    assert min(speeds) <= facts(chosen)["tokens_per_second"] <= max(speeds) and "bf16_share" not in facts(chosen)
    assert far(fixed, chosen) == 0 and facts(fixed)["fingerprint"] == facts(chosen)["fingerprint"]
    # On a card without room, the least. What is finished is used again, whatever the card.
    monkeypatch.setattr(fitting.plan, "memory_there", lambda otherwise: 0.001)
    auto = {"settings": replace(settings, **AUTO), "model": ModelSettings(gradient_checkpointing="auto")}
    before = (chosen / "model.safetensors").stat().st_mtime_ns
    assert (train(tmp_path / "chosen", **auto) / "model.safetensors").stat().st_mtime_ns == before
    least = facts(train(tmp_path / "least", **auto))
    assert least["settings"]["per_device_train_batch_size"] == 1


def test_the_fingerprint_is_of_the_step_not_of_its_passes(world: dict[str, Path]) -> None:
    def made(settings: Any, checkpointing: Any = False) -> str:
        model = ModelSettings(gradient_checkpointing=checkpointing)
        return fingerprint(Inputs(world["model"], world["pa_sft"], settings, model, 0))

    same = {made(SFT), made(SFT.in_passes(1)), made(replace(SFT, **AUTO), "auto"), made(SFT, True)}
    assert len(same) == 1
    assert made(replace(SFT, per_device_train_batch_size=2)) not in same


def test_a_step_is_either_chosen_or_fixed() -> None:
    for change in ({"per_device_train_batch_size": "auto"}, {"per_device_step_size": 8}):
        with pytest.raises(ValueError, match="goes with"):
            replace(SFT, **change)
    shared = replace(SFT, **AUTO).in_processes(2, planned=1)
    assert shared.step_size(2) == 4 and shared.per_device_train_batch_size == "auto"
    assert replace(SFT, **AUTO).in_passes(3).per_device_train_batch_size == 2


def test_pictures_opened_by_other_processes_change_no_weight(
    stage: tuple[Train, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, settings = stage
    here = train(tmp_path / "here", settings)
    monkeypatch.setattr(trainers, "_workers", lambda: 2)
    assert far(here, train(tmp_path / "there", settings)) == 0
