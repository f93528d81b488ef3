"""The environment doctor: one line per requirement, OK or FAIL, each FAIL with its mend."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from iadr1_lib.errors import UserError
from iadr1_lib.runs import hardware, project_root, runs_folder

PYTHON = (3, 11)
CORES = 2
MEMORY_GIB = 6  # the course's peak stays below
DISK_GIB = 2
KERNEL_SECONDS = 60
REINSTALL = "pip install -c constraints.txt -e ."


@dataclass(frozen=True)
class Check:
    """One requirement: what was looked at, whether it is met, what was found, and how to mend it if not."""

    name: str
    ok: bool
    found: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{'OK  ' if self.ok else 'FAIL'}  {self.name}: {self.found}"
        return line if self.ok else f"{line} -> {self.mend}"


def examine() -> Iterator[Check]:
    """Yield all checks, quick ones first."""
    root = project_root()
    yield check_python()
    yield from check_packages(root)
    yield from check_machine()
    yield check_runs_folder()
    yield check_base(root / "data" / "mini_base")
    yield check_notebooks()
    yield check_kernel()


def check_python() -> Check:
    """Is this Python new enough?"""
    wanted = ".".join(map(str, PYTHON))
    found = f"{platform.python_version()} ({sys.executable})"
    return Check("python", sys.version_info[:2] >= PYTHON, found, f"make the environment with Python {wanted}+")


def tested_versions(root: Path) -> dict[str, str]:
    """Return name -> version in constraints.txt of what pyproject.toml asks for itself."""
    asked = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {_normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in asked}
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {_normal(name): version.strip() for name, version in pins if _normal(name) in names}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_packages(root: Path) -> Iterator[Check]:
    """Is each package there, in the version that was tested?"""
    for name, wanted in sorted(tested_versions(root).items()):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, False, "missing", f"{REINSTALL} (in {root})")
            continue
        same = found.split("+")[0] == wanted  # 2.13.0+cpu is torch 2.13.0
        yield Check(name, same, found if same else f"{found}, tested is {wanted}", f"{REINSTALL} (in {root})")


def check_machine() -> Iterator[Check]:
    """Are there enough cores, memory and disk?"""
    machine = hardware()
    cores, memory = machine["cores"], machine["memory_gib"]
    yield Check("cores", cores >= CORES, str(cores), f"give the machine {CORES} cores, or expect twice the time")
    yield Check("memory", memory >= MEMORY_GIB, f"{memory} GiB", f"use a machine with {MEMORY_GIB} GiB or more")
    place = _existing(runs_folder())
    free = shutil.disk_usage(place).free / 2**30
    mend = f"free {DISK_GIB} GiB there, or set IADR1_RUNS to a folder on another disk"
    yield Check("disk", free >= DISK_GIB, f"{free:.1f} GiB free at {place}", mend)


def check_runs_folder() -> Check:
    """Can results be written?"""
    place = _existing(runs_folder())
    mend = "set IADR1_RUNS to a folder you may write to"
    try:
        with tempfile.TemporaryFile(dir=place):
            return Check("runs folder", os.access(place, os.W_OK), str(runs_folder()), mend)
    except OSError as error:
        return Check("runs folder", False, f"{place}: {error.strerror}", mend)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_base(folder: Path) -> Check:
    """Are the base weights there, and are they the ones that were shipped (SHA256SUMS beside them)?"""
    mend = "git checkout -- data/mini_base, or make them again: python data/mini_base_build.py"
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return Check("base weights", False, f"no {sums}", mend)
    for line in sums.read_text(encoding="utf-8").splitlines():
        wanted, name = line.split(maxsplit=1)
        path = folder / name.lstrip("*")
        if not path.is_file():
            return Check("base weights", False, f"{path} is missing", mend)
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            return Check("base weights", False, f"{path} differs from its sum in {sums.name}", mend)
    return Check("base weights", True, str(folder))


def check_notebooks() -> Check:
    """Are the course's notebooks there?"""
    from iadr1_lib.course.batch import find_notebooks

    try:
        notebooks = find_notebooks()
    except UserError as error:
        return Check("notebooks", False, str(error), "git checkout -- notebooks")
    return Check("notebooks", True, f"{len(notebooks)} in {notebooks[0].path.parent}")


def check_kernel() -> Check:
    """Does a notebook kernel start and answer?"""
    try:
        asyncio.run(_start_kernel())
    except Exception as error:  # whatever keeps a kernel from starting is what the learner must read
        return Check("jupyter kernel", False, f"{type(error).__name__}: {error}", f"{REINSTALL}, then try again")
    return Check("jupyter kernel", True, f"starts under {sys.executable}")


async def _start_kernel() -> None:
    from iadr1_lib.course.batch import OwnKernelManager

    manager = OwnKernelManager(kernel_name="python3")
    await manager.start_kernel()
    try:
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=KERNEL_SECONDS)
        client.stop_channels()
    finally:
        await manager.shutdown_kernel(now=True)
