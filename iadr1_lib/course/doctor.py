"""The environment doctor: one line per requirement, OK or FAIL, each FAIL with its remedy."""

from __future__ import annotations

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
from iadr1_lib.runs import base_model_dir, hardware, project_root, runs_folder

PYTHON = (3, 11)
CORES = 2
MEMORY_GIB = 6  # the course's peak stays below
DISK_GIB = 2
KERNEL_SECONDS = 60
REINSTALL = "pip install -c constraints.txt -e ."


@dataclass(frozen=True)
class Check:
    """One requirement: its name, whether it is met, what was found, and the remedy if it is not met."""

    name: str
    ok: bool
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{'OK  ' if self.ok else 'FAIL'}  {self.name}: {self.found}"
        return line if self.ok else f"{line} -> {self.remedy}"


def examine() -> Iterator[Check]:
    """Yield all checks, quick ones first."""
    yield check_python()
    yield from check_packages(project_root())
    yield from check_machine()
    yield check_runs_folder()
    yield check_base(base_model_dir())
    yield check_notebooks()
    yield check_kernel()


def check_python() -> Check:
    """Is this Python new enough?"""
    wanted = ".".join(map(str, PYTHON))
    version = f"{platform.python_version()} ({sys.executable})"
    return Check("python", sys.version_info[:2] >= PYTHON, version, f"make the environment with Python {wanted}+")


def tested_versions(root: Path) -> dict[str, str]:
    """Return name -> version in constraints.txt of what pyproject.toml asks for itself."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {_normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in project["dependencies"]}
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_normal(name): version.strip() for name, version in pins.items() if _normal(name) in names}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_packages(root: Path) -> Iterator[Check]:
    """Is each package there, in the version that was tested?"""
    for name, wanted in sorted(tested_versions(root).items()):
        try:
            version = metadata.version(name)
            same = version.split("+")[0] == wanted  # 2.13.0+cpu is torch 2.13.0
        except metadata.PackageNotFoundError:
            version, same = "missing", False
        yield Check(name, same, version if same else f"{version}, tested is {wanted}", f"{REINSTALL} (in {root})")


def check_machine() -> Iterator[Check]:
    """Are there enough cores, memory and disk?"""
    machine = hardware()
    cores, memory = machine["cores"], machine["memory_gib"]
    yield Check("cores", cores >= CORES, str(cores), f"give the machine {CORES} cores, or expect twice the time")
    yield Check("memory", memory >= MEMORY_GIB, f"{memory} GiB", f"use a machine with {MEMORY_GIB} GiB or more")
    folder = _existing(runs_folder())
    free = shutil.disk_usage(folder).free / 2**30
    remedy = f"free {DISK_GIB} GiB there, or set IADR1_RUNS to a folder on another disk"
    yield Check("disk", free >= DISK_GIB, f"{free:.1f} GiB free at {folder}", remedy)


def check_runs_folder() -> Check:
    """Can results be written?"""
    folder = _existing(runs_folder())
    remedy = "set IADR1_RUNS to a folder you may write to"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("runs folder", os.access(folder, os.W_OK), str(runs_folder()), remedy)
    except OSError as error:
        return Check("runs folder", False, f"{folder}: {error.strerror}", remedy)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_base(folder: Path) -> Check:
    """Are the base weights there, and are they the ones that were shipped (SHA256SUMS beside them)?"""
    sums = folder / "SHA256SUMS"
    problem = "" if sums.is_file() else f"no {sums}"
    for line in sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else ():
        wanted, name = line.split(maxsplit=1)
        path = folder / name.lstrip("*")
        if not path.is_file():
            problem = problem or f"{path} is missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            problem = problem or f"{path} differs from its sum in {sums.name}"
    remedy = "git checkout -- data/mini_base, or make them again: python data/mini_base_build.py"
    return Check("base weights", not problem, problem or str(folder), remedy)


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
    import nbformat
    from nbclient import NotebookClient

    from iadr1_lib.course.batch import OwnKernelManager

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    try:
        NotebookClient(notebook, kernel_manager_class=OwnKernelManager, startup_timeout=KERNEL_SECONDS).execute()
    except Exception as error:  # whatever keeps a kernel from starting is what the learner must read
        return Check("jupyter kernel", False, f"{type(error).__name__}: {error}", f"{REINSTALL}, then try again")
    return Check("jupyter kernel", True, f"starts under {sys.executable}")
