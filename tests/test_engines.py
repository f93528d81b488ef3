"""Engines: their configurations, the released batch arithmetic, and two processes against one."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
from accelerate.commands.config.config_args import load_config_from_file
from test_training import far, log_without_times
from trl import GRPOConfig
from typer.testing import CliRunner

from iadr1_lib.cli.app import app
from iadr1_lib.course import steps as course
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.models import MODELS, ModelSettings
from iadr1_lib.runs import MODEL, Choices, Run, load_profile, profile_names
from iadr1_lib.training import EngineSettings, PaSftSettings, ScGrpoSettings, launch

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent


@pytest.mark.parametrize("name, kind", [("ddp", "MULTI_GPU"), ("zero3", "DEEPSPEED"), ("fsdp2", "FSDP")])
def test_accelerate_reads_the_shipped_configurations(name: str, kind: str) -> None:
    read = load_config_from_file(str(launch.config_file(name)))
    assert read.distributed_type == kind
    if name == "zero3":
        assert read.deepspeed_config["zero_stage"] == 3 and read.deepspeed_config["zero3_save_16bit_model"]
    if name == "fsdp2":
        assert read.fsdp_config["fsdp_version"] == 2 and not read.fsdp_config["fsdp_cpu_ram_efficient_loading"]
        assert read.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_an_unknown_engine_names_the_choices() -> None:
    with pytest.raises(WrongUse, match="ddp, fsdp2, zero3"):
        launch.config_file("horovod")


@pytest.mark.parametrize("name", profile_names())
def test_each_profile_has_an_engine_and_a_model(name: str) -> None:
    profile = load_profile(name)
    engine, model = profile.settings("engine", EngineSettings), profile.settings("model", ModelSettings)
    assert model.name in MODELS
    assert engine.vllm == "off"
    if engine.config != launch.SINGLE:
        launch.config_file(engine.config)


def test_the_paper_profile_keeps_the_released_batches() -> None:
    profile = load_profile("paper")
    engine = profile.settings("engine", EngineSettings)
    sft, grpo = profile.settings("pa_sft", PaSftSettings), profile.settings("sc_grpo", ScGrpoSettings)
    assert sft.step_size(engine.processes) == 8  # 4 x 1 x 2
    assert grpo.step_size(engine.processes) == 8 * grpo.num_generations
    with_server = replace(engine, vllm="server").with_a_gpu_for_vllm()
    assert grpo.step_size(with_server.processes) == 6 * grpo.num_generations  # 3 x 1 x 2


def test_vllm_gets_its_arguments_and_as_a_server_a_gpu_of_its_own() -> None:
    assert EngineSettings().rollouts() == {}
    arguments = EngineSettings(vllm="server", vllm_url="http://other:1").rollouts()
    assert arguments["vllm_mode"] == "server" and arguments["vllm_server_base_url"] == "http://other:1"
    assert set(arguments) | set(EngineSettings(vllm="colocate").rollouts()) <= {f.name for f in fields(GRPOConfig)}
    with pytest.raises(UserError, match="GPU of its own"):
        EngineSettings(vllm="server", processes=1).with_a_gpu_for_vllm()


@pytest.mark.skipif(launch.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_sentence_says_so() -> None:
    with pytest.raises(UserError, match=r'pip install .*"\.\[vllm\]"'):
        launch.require_vllm()


def test_the_command_of_an_engine_names_configuration_processes_and_stage() -> None:
    line = launch.command(EngineSettings("zero3", 4), ["train", "--stage", "pa-sft"])
    assert line[1:3] == ["-m", "accelerate.commands.launch"]
    assert line[line.index("--num_processes") + 1] == "4"
    assert line[line.index("--config_file") + 1].endswith("zero3.yaml")
    assert line[-5:] == ["-m", "iadr1_lib.cli", "train", "--stage", "pa-sft"]


def test_a_stage_that_is_launched_passes_everything_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run("paper", 3, tmp_path)
    for stage in ("pa_sft", "sc_grpo"):
        (tmp_path / "expert_ad").mkdir(exist_ok=True)
        (tmp_path / "expert_ad" / f"{stage}.json").write_text("[]")
        (tmp_path / stage / "model").mkdir(parents=True)
        (tmp_path / stage / "model" / "config.json").write_text("{}")
    started: list[Any] = []
    monkeypatch.setattr(launch, "launch", lambda engine, arguments: started.append((engine, arguments)))
    monkeypatch.setattr("iadr1_lib.models.loading.model_folder", lambda settings: tmp_path)
    server = replace(course.engine_settings(run), vllm="server")
    assert course.train_stage(run, "pa_sft", server) == tmp_path / "pa_sft" / "model"
    course.train_stage(run, "sc_grpo", server)
    assert [engine.processes for engine, _ in started] == [4, 3]
    options = dict(zip(started[1][1][1::2], started[1][1][2::2], strict=True))
    assert options["--stage"] == "sc-grpo" and options["--seed"] == "3" and options["--folder"] == str(tmp_path)
    assert options["--engine"] == "zero3" and options["--processes"] == "4" and options["--vllm"] == "server"


def test_full_fine_tuning_of_bfloat16_weights_needs_sharding(tmp_path: Path) -> None:
    run = Run("paper", 0, tmp_path)
    with pytest.raises(UserError, match="float32"):
        course.train_stage(run, "pa_sft", EngineSettings("ddp", 4))


def test_sc_grpo_before_pa_sft_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "expert_ad").mkdir()
    (tmp_path / "expert_ad" / "sc_grpo.json").write_text("[]")
    with pytest.raises(UserError, match="iadr1 train --stage pa-sft --profile gpu --model llava-onevision-0.5b"):
        course.train_stage(Run("gpu", 0, tmp_path), "sc_grpo")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--engine", "horovod"], "unknown engine horovod"),
        (["--processes", "2"], "engine single is one process"),
        (["--vllm", "maybe"], "unknown --vllm"),
    ],
)
def test_a_wrong_engine_is_wrong_use(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["train", "--stage", "pa-sft", "--profile", "smoke", *options])
    assert result.exit_code == 2 and message in result.output


def test_another_model_has_a_run_folder_of_its_own() -> None:
    other = Run("gpu", 0, choices=Choices(settings={MODEL: "qwen2-vl-2b"}))
    assert other.folder.name == "gpu-s0-qwen2-vl-2b"
    assert other.profile.sections["model"]["name"] == "qwen2-vl-2b"
    assert Run("gpu", 0).profile.sections["model"]["name"] == "llava-onevision-0.5b"


# --------------------------------------------------------------------------------------- several processes


def in_processes(count: int, *arguments: object, killed: bool = False) -> None:
    """Run two_processes.py in `count` processes of the engine `ddp`, as `accelerate launch` starts them."""
    command = [sys.executable]
    if count > 1:
        command = launch.command(EngineSettings("ddp", count), [])
        command = command[: command.index("iadr1_lib.cli") - 1]
    path = os.pathsep.join([str(TESTS), str(ROOT)])
    run = subprocess.run(
        [*command, str(TESTS / "two_processes.py"), *map(str, arguments)],
        # Without a GPU: two processes would need two.
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (run.returncode != 0) == killed, run.stderr[-3000:]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_vlm.world(tmp_path_factory.mktemp("two"))


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_in_pa_sft(world: dict[str, Path]) -> None:
    logs = []
    for count in (1, 2):
        out = world["folder"] / f"sft{count}"
        in_processes(count, "pa_sft", world["model"], world["pa_sft"], out, 3)
        logs.append([float(row["loss"]) for row in log_without_times(out) if row["loss"]])
        assert json.loads((out / "stage.json").read_text())["processes"] == count
    assert len(logs[0]) == len(logs[1]) > 0
    assert max(abs(a - b) for a, b in zip(*logs, strict=True)) < 1e-3


@pytest.mark.slow
def test_two_processes_take_the_step_of_one_in_sc_grpo(world: dict[str, Path]) -> None:
    advantages, norms = [], []
    for count in (1, 2):
        out = world["folder"] / f"grpo{count}"
        in_processes(count, "sc_grpo", world["model"], world["sc_grpo"], out, 2, "recorded")
        parts = [json.loads(Path(f"{out}.advantages.{rank}.json").read_text()) for rank in range(count)]
        size = 4 // count  # completions of a step in each process
        steps = [[a for part in parts for a in part[k * size : (k + 1) * size]] for k in range(2)]
        advantages.append([a for step in steps for a in step])
        norms.append([float(row["grad_norm"]) for row in log_without_times(out) if row["grad_norm"]])
    assert max(abs(a) for a in advantages[0]) > 0.1
    assert max(abs(a - b) for a, b in zip(*advantages, strict=True)) < 1e-5
    assert max(abs(a / b - 1) for a, b in zip(*norms, strict=True)) < 0.01
    assert far(world["folder"] / "grpo1" / "model", world["folder"] / "grpo2" / "model") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("stage, steps", [("pa_sft", 6), ("sc_grpo", 6)])
def test_a_killed_stage_goes_on_to_the_same_end(world: dict[str, Path], stage: str, steps: int, count: int) -> None:
    whole, broken = (world["folder"] / f"{name}-{stage}-{count}" for name in ("whole", "broken"))
    in_processes(count, stage, world["model"], world[stage], whole, steps)
    in_processes(count, stage, world["model"], world[stage], broken, steps, 5, killed=True)
    assert not (broken / "stage.json").exists()
    assert sorted(path.name for path in (broken / "unfinished" / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    in_processes(count, stage, world["model"], world[stage], broken, steps)
    logs = [log_without_times(out) for out in (whole, broken)]
    for row in itertools.chain(*logs):
        row.pop("num_tokens", None)  # TRL counts them from the last start
    assert logs[0] == logs[1]  # rewards, lengths, losses of every step
    assert far(whole / "model", broken / "model") < 1e-4


@pytest.mark.slow
def test_the_command_trains_in_two_processes_and_says_what_they_print(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "expert_ad").mkdir()
    (tmp_path / "expert_ad" / "pa_sft.json").write_text(world["pa_sft"].read_text())
    monkeypatch.setattr(course, "dev_check", lambda run: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    lines: list[str] = []
    engine = EngineSettings("ddp", 2)
    arguments = ["train", "--stage", "sc-grpo", "--profile", "smoke", "--folder", str(tmp_path)]
    with pytest.raises(UserError, match="sc_grpo.json is missing"):
        launch.launch(engine, [*arguments, "--engine", "ddp", "--processes", "2"], say=lines.append)
    assert any("iadr1 run" in line for line in lines)
