"""What runs a stage: this process, or several under `accelerate launch`; and what vLLM changes in that.

Starts without torch. The stages themselves do not know which engine they run in.
"""

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
from typing import Literal, Protocol, TypeVar

from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.runs import project_root

SINGLE = "single"
_LAUNCHED = "IADR1_LAUNCHED"  # set in the processes that an engine started


@dataclass(frozen=True)
class EngineSettings:
    """How a stage is run.

    Attributes:
        config: "single" (this process) or a file in data/accelerate/ without its ending.
        processes: of training, over all; with vLLM as a server one of their GPUs is the server's.
        gpu_gib: memory of one GPU, for `iadr1 plan`.
        vllm: who generates the rollouts of SC-GRPO: transformers ("off"), or vLLM in a process of its own or in those
            of the training. Off by default: vLLM with pictures in TRL has known faults (`iadr1 check-vllm`).
        vllm_url: where the server listens.
    """

    config: str = SINGLE
    processes: int = 1
    gpu_gib: float = 0
    vllm: Literal["off", "server", "colocate"] = "off"
    vllm_url: str = "http://localhost:8000"


class _Batch(Protocol):
    @property
    def prompts(self) -> int: ...


BatchT = TypeVar("BatchT", bound=_Batch)


def config_file(name: str) -> Path:
    """The configuration of `accelerate launch` for an engine; WrongUse names the choices."""
    folder = project_root() / "data" / "accelerate"
    file = folder / f"{name}.yaml"
    if not file.exists():
        known = ", ".join([SINGLE, *sorted(path.stem for path in folder.glob("*.yaml"))])
        raise WrongUse(f"unknown engine {name}: choose from {known}")
    return file


def is_launched() -> bool:
    """Whether this process was started by an engine, so that it must train and not launch again."""
    return _LAUNCHED in os.environ


def with_a_gpu_for_vllm(engine: EngineSettings, batch: BatchT) -> tuple[EngineSettings, BatchT]:
    """Engine and batch of SC-GRPO once the vLLM server has its GPU: one process less, and its prompts with it.

    So the released batch comes out: of four processes with two prompts each, three train on six prompts a step.
    """
    if engine.vllm != "server":
        return engine, batch
    if engine.processes < 2:
        raise UserError(
            "vLLM as a server needs a GPU of its own: set engine.processes to 2 or more, or vllm to colocate"
        )
    share, rest = divmod(batch.prompts, engine.processes)
    if rest:
        raise UserError(
            f"sc_grpo.prompts {batch.prompts} is no multiple of engine.processes {engine.processes}: choose one"
        )
    fewer = engine.processes - 1
    return replace(engine, processes=fewer), replace(batch, prompts=share * fewer)  # type: ignore[type-var]


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
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(config_file(engine.config))),
        *("--num_processes", str(engine.processes)),
        *("--main_process_port", str(_free_port())),
        *("-m", "iadr1_lib.cli", *arguments),
    ]


def launch(engine: EngineSettings, arguments: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Run `iadr1 ARGUMENTS` in the engine's processes and pass on what they print, line by line.

    Raises:
        UserError: they failed; it ends with the last thing they said.
    """
    environment = os.environ | {_LAUNCHED: engine.config, "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen(
        command(engine, arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert started.stdout is not None
    said = ""
    try:
        for line in started.stdout:
            say(line.rstrip("\n"))
            said = line.removeprefix("iadr1: ").strip() if line.startswith("iadr1: ") else said
    except BaseException:
        started.terminate()  # Ctrl-C, a kernel that is shut down: no process is left behind
        started.wait()
        raise
    if started.wait():
        reason = said or f"it ended with status {started.returncode}; its output above says why"
        raise UserError(f"the engine {engine.config} with {engine.processes} process(es) failed: {reason}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
