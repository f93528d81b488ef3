"""Provenance: code, packages, hardware and data that a number was computed with."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from iadr1_lib.runs.places import base_model_dir, project_root
from iadr1_lib.runs.run import Run

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "pillow", "scikit-image")
RUN_KEYS = ("seed", "commit", "data_hash", "time", "versions", "hardware")  # what provenance says of each run


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def hardware() -> dict[str, Any]:
    """Return usable cores, memory in GiB, processor, system, and the device that torch sees."""
    allowed = getattr(os, "sched_getaffinity", None)
    return {
        "cores": len(allowed(0)) if allowed else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device(),
    }


def _device() -> str:
    """The GPU's name, or "cpu". Torch is loaded for it only where the driver's tool says that there may be one."""
    if "torch" not in sys.modules and shutil.which("nvidia-smi") is None:
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return name.group(1).strip() if name else platform.processor() or platform.machine()


def commit() -> str:
    """Return the checkout's commit, with `+changes` if files differ from it; `unknown` outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment_banner() -> str:
    """Return two lines for the top of a notebook: versions, then machine and commit."""
    machine = hardware()
    packages = "  ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"{packages}\n{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['processor']}, "
        f"device {machine['device']}, commit {commit()}"
    )


def data_hash(data: Iterable[str | Path]) -> str:
    """Return a sha256 over the files of folders, by sorted relative name, and over single files, names and contents.

    What is missing counts as empty.
    """
    digest = hashlib.sha256()
    for given in map(Path, data):
        for path in [given] if given.is_file() else sorted(item for item in given.rglob("*") if item.is_file()):
            digest.update(f"{given.name}/{path.relative_to(given).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def stamp(parameters: Mapping[str, Any], seed: int, data: Iterable[str | Path]) -> dict[str, Any]:
    """Return what it takes to reproduce a number.

    Keys: parameters, seed, versions, hardware, commit, data_hash (over the folders and files `data`), time.
    """
    return {
        "parameters": dict(parameters),
        "seed": seed,
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
        "data_hash": data_hash(data),
        "time": _now(),
    }


def provenance(run: Run, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the `stamp` of a run: the profile's values, and as data the drawn world and the base weights."""
    values = {"profile": run.profile.name, **run.profile.sections, **(parameters or {})}
    return stamp(values, run.seed, [run.path("world"), base_model_dir()])


def pooled_provenance(parameters: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one block for results of several runs: what they have in common, then what each run's own block says."""
    own = [{key: block[key] for key in RUN_KEYS} for block in blocks]
    return {"parameters": dict(parameters), "runs": own, "time": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
