"""What runs a stage: this process, or several under `accelerate launch`; and where vLLM generates. Without torch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.runs import project_root

SINGLE = "single"
VLLM_LENGTH = 8192  # tokens of prompt and completion; some models' own limit of 128k would not fit beside the weights
_LAUNCHED = "IADR1_LAUNCHED"  # set in the processes that an engine started


@dataclass(frozen=True)
class EngineSettings:
    """How a stage is run.

    Attributes:
        config: "single" (this process) or a file in data/accelerate/ without its ending.
        processes: of training, over all; with vLLM as a server one of their GPUs is the server's.
        gpu_gib: memory of one GPU, for `iadr1 plan`.
        vllm: who generates the rollouts of SC-GRPO: transformers ("off"), or vLLM in a process of its own ("server") or
            in those of the training ("colocate"). Off by default: vLLM with pictures in TRL has known faults
            (`iadr1 check-vllm`).
        vllm_url: where the server listens.
        merge_adapter, compiled, generation_batch: how transformers generates; see models.GenerationSettings.
    """

    config: str = SINGLE
    processes: int = 1
    gpu_gib: float = 0
    vllm: Literal["off", "server", "colocate"] = "off"
    vllm_url: str = "http://localhost:8000"
    merge_adapter: bool = True
    compiled: bool = True
    generation_batch: int | None = None

    def generation(self) -> dict[str, Any]:
        """Arguments of models.GenerationSettings: how transformers writes the completions of SC-GRPO."""
        batch = self.generation_batch
        return {"merge_adapter": self.merge_adapter, "compiled": self.compiled, "batch": batch}

    def rollouts(self) -> dict[str, Any]:
        """GRPOConfig's arguments that hand generation to vLLM; none where transformers generates."""
        if self.vllm == "off":
            return {}
        arguments = {"use_vllm": True, "vllm_mode": self.vllm, "vllm_max_model_length": VLLM_LENGTH}
        return arguments | ({"vllm_server_base_url": self.vllm_url} if self.vllm == "server" else {})

    def with_a_gpu_for_vllm(self) -> EngineSettings:
        """The engine of SC-GRPO: one process less where the vLLM server takes a GPU.

        Each process keeps its share of a step, so the released batch comes out: three of four processes train.

        Raises:
            UserError: there is only one process.
        """
        if self.vllm != "server":
            return self
        if self.processes < 2:
            raise UserError(
                "vLLM as a server needs a GPU of its own: set engine.processes to 2 or more, or vllm to colocate"
            )
        return replace(self, processes=self.processes - 1)


def config_file(name: str) -> Path:
    """The configuration of `accelerate launch` for an engine; WrongUse names the choices."""
    folder = project_root() / "data" / "accelerate"
    file = folder / f"{name}.yaml"
    if not file.exists():
        known = ", ".join([SINGLE, *sorted(path.stem for path in folder.glob("*.yaml"))])
        raise WrongUse(f"unknown engine {name}: choose from {known}")
    return file


def engine_here() -> str:
    """The engine that started this process; "single" if none did."""
    return os.environ.get(_LAUNCHED, SINGLE)


def is_launched() -> bool:
    """Whether this process was started by an engine, so that it must train and not launch again."""
    return _LAUNCHED in os.environ


def sees_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def require_reporter(name: str) -> None:
    """Raise UserError for a place to report to (`report_to`) whose package is missing."""
    if name == "none":
        return
    from transformers.integrations import get_available_reporting_integrations

    there = get_available_reporting_integrations()
    if name not in there:
        known = ", ".join(there) or "none"
        raise UserError(f"the trainer cannot report to {name}: pip install {name} (installed: {known})")


def require_vllm() -> str:
    """The version of vLLM; UserError where it is missing."""
    if find_spec("vllm") is None:
        raise UserError(
            'vLLM is not installed: pip install -c constraints-gpu.txt -e ".[vllm]" on a machine with a GPU, '
            "or set engine.vllm to off (transformers generates then)"
        )
    return metadata.version("vllm")


def command(engine: EngineSettings, arguments: Sequence[str]) -> list[str]:
    """The command line that runs `iadr1 ARGUMENTS` in the engine's processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(config_file(engine.config))),
        *("--num_processes", str(engine.processes)),
        *("--main_process_port", str(free_port)),
        *("-m", "iadr1_lib.cli", *arguments),
    ]


def launch(engine: EngineSettings, arguments: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Run `iadr1 ARGUMENTS` in the engine's processes and pass on what they print, line by line.

    Raises:
        UserError: they failed; it ends with their last error message.
    """
    environment = os.environ | {_LAUNCHED: engine.config, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command(engine, arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    message = ""
    try:
        for line in process.stdout:
            say(line.rstrip("\n"))
            message = line.removeprefix("iadr1: ").strip() if line.startswith("iadr1: ") else message
    except BaseException:
        process.terminate()  # Ctrl-C, a kernel that is shut down: no process is left behind
        process.wait()
        raise
    if process.wait():
        reason = message or f"it ended with status {process.returncode}; its output above says why"
        raise UserError(f"the engine {engine.config} with {engine.processes} process(es) failed: {reason}")
