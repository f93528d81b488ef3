"""Runs: the project's root, profiles, seeds, run folders and the metrics record.

Everything here starts at once: torch is loaded only where it is seeded, or asked for a GPU.
The batch that executes the notebooks builds on this module and lives in `batch`.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import yaml
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.files import read_object, write_json
from pydantic import BaseModel, TypeAdapter, ValidationError

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "pillow",
    "scikit-image",
)
RUN_KEYS = ("seed", "commit", "data_hash", "time", "versions", "hardware")  # what provenance says of each run
METRIC_KEYS = ("notebook", "name", "value", "low", "high", "n", "unit")

SettingsT = TypeVar("SettingsT")








# ---------------------------------------------------------------------------------------------- places


def project_root() -> Path:
    """Return `IADR1_ROOT`, else the nearest parent of the working directory that holds the course,
    else the editable checkout this module lies in. Raises UserError where none of them is there."""
    given = os.environ.get("IADR1_ROOT")
    if given:
        root = Path(given).expanduser().resolve()
        if not _is_root(root):
            raise UserError(f"IADR1_ROOT={given} holds no notebooks/ and iadr1_lib/: point it at the project's folder")
        return root
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if _is_root(folder):
            return folder
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "data" / "profiles").is_dir():  # not so where the package was installed without -e
        return checkout
    raise UserError(f"no project found from {here}: change into the cloned project or set IADR1_ROOT to it")


def base_model_dir() -> Path:
    """Return the folder of the mini VLM's base weights that ship with the project."""
    return project_root() / "data" / "mini_base"


def _is_root(folder: Path) -> bool:
    return (folder / "notebooks").is_dir() and (folder / "iadr1_lib").is_dir()


# -------------------------------------------------------------------------------------------- profiles


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-4` as a string and `off` as false; a learner who writes them means a number and a word."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Profile:
    """The values of one size of the course.

    sections: section name -> key -> value. sources: "section.key" -> where the paper or its released scripts
    state the value, or why it was chosen. path: the YAML file.
    """

    name: str
    sections: dict[str, dict[str, Any]]
    sources: dict[str, str]
    path: Path

    def section(self, name: str) -> dict[str, Any]:
        """Return a copy of one section's values."""
        if name not in self.sections:
            raise UserError(f"profile {self.name} ({self.path}) has no section {name}: it has {_listed(self.sections)}")
        return dict(self.sections[name])

    def settings(self, section: str, settings_class: type[SettingsT]) -> SettingsT:
        """Build a pydantic model or dataclass from a section; each key must be a field, each value must fit.

        Fields with a default may be left out. Raises UserError naming an unknown, missing or ill-typed key.
        """
        values = self.section(section)
        where = f"profile {self.name} ({self.path}), section {section}"
        names = _field_names(settings_class)
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise UserError(f"{where}: unknown key {', '.join(unknown)}; allowed are {_listed(names)}")
        try:
            return TypeAdapter(settings_class).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "values"
            problem = "is missing" if first["type"].startswith("missing") else f"is wrong: {first['msg']}"
            raise UserError(f"{where}: {key} {problem}; set it as {{value: ..., source: ...}}") from error

    def table(self) -> list[dict[str, Any]]:
        """Return one row per value (section, key, value, source), to be shown in a notebook."""
        return [
            {"section": section, "key": key, "value": value, "source": self.sources[f"{section}.{key}"]}
            for section, values in self.sections.items()
            for key, value in values.items()
        ]


def profile_names() -> list[str]:
    """Return the names of all profiles in data/profiles/."""
    return sorted(path.stem for path in (project_root() / "data" / "profiles").glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read data/profiles/<name>.yaml.

    Raises WrongUse for an unknown name, UserError for a value without source.
    """
    path = project_root() / "data" / "profiles" / f"{name}.yaml"
    if name not in profile_names():
        raise WrongUse(f"unknown profile {name}: available are {_listed(profile_names())} (in {path.parent})")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not all(isinstance(section, dict) for section in raw.values()):
        raise UserError(f"{path} must hold sections of keys, each key as {{value: ..., source: ...}}")
    sections: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    for section, leaves in raw.items():
        sections[section] = {}
        for key, leaf in leaves.items():
            if not _is_leaf(leaf):
                raise UserError(f"{path}: {section}.{key} needs a value and a source (where it is stated, or why)")
            sections[section][key] = leaf["value"]
            sources[f"{section}.{key}"] = str(leaf["source"])
    return Profile(name, sections, sources, path)


def _is_leaf(leaf: Any) -> bool:
    return isinstance(leaf, dict) and set(leaf) == {"value", "source"} and bool(str(leaf["source"] or "").strip())


def _field_names(settings_class: Any) -> list[str]:
    if issubclass(settings_class, BaseModel):
        return list(settings_class.model_fields)
    return [field.name for field in dataclasses.fields(settings_class)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


# ----------------------------------------------------------------------------------------- run folders


def runs_folder() -> Path:
    """Return the folder that holds all runs: `IADR1_RUNS`, else runs/ in the project."""
    given = os.environ.get("IADR1_RUNS")
    return Path(given).expanduser().resolve() if given else project_root() / "runs"


class Run:
    """One run of the course: a profile, a seed and the folder that holds what the run produces.

    folder: given, else `$IADR1_RUNS`/<profile>-s<seed>, else runs/<profile>-s<seed> in the project.
    """

    def __init__(self, profile: str, seed: int, folder: str | Path | None = None) -> None:
        self.profile = load_profile(profile)
        self.seed = int(seed)
        own = runs_folder() / f"{profile}-s{self.seed}"
        self.folder = Path(folder).expanduser().resolve() if folder else own

    def with_model(self, name: str) -> Run:
        """The same run with another model than the profile's, in a folder of its own."""
        if name == self.profile.sections["model"]["name"]:
            return self
        sections = self.profile.sections | {"model": self.profile.sections["model"] | {"name": name}}
        other = Run(
            self.profile.name, self.seed, self.folder.with_name(f"{self.folder.name}-{name.replace('/', '--')}")
        )
        other.profile = dataclasses.replace(self.profile, sections=sections)
        return other

    def __repr__(self) -> str:
        return f"Run(profile={self.profile.name!r}, seed={self.seed}, folder={str(self.folder)!r})"

    def path(self, *parts: str) -> Path:
        """Return a path inside the run folder; nothing is created."""
        return self.folder.joinpath(*parts)

    def require(self, path: str | Path, made_by: str) -> Path:
        """Return `path` (relative to the run folder, or absolute) as `require` does."""
        return require(self.folder / path, made_by, f"--profile {self.profile.name} --seed {self.seed} ")


def require(path: str | Path, made_by: str, options: str = "") -> Path:
    """Return `path` if it is there and no empty folder, else raise UserError naming the notebook to run."""
    path = Path(path)
    if path.is_file() or path.is_dir() and any(path.iterdir()):
        return path
    command = f"iadr1 run {options}--only {made_by.split('_')[0]}"
    raise UserError(f"{path} is missing: run notebook {made_by} first ({command})")


def seed_everything(seed: int) -> None:
    """Seed random, numpy and torch, which is loaded for it: a notebook calls this before anything else."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ------------------------------------------------------------------------------------------ provenance


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
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


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
    """Return what it takes to make a number again.

    Keys: parameters, seed, versions, hardware, commit, data_hash (over the folders and files `data`), time.
    """
    return {
        "parameters": dict(parameters),
        "seed": seed,
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
        "data_hash": data_hash(data),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def provenance(run: Run, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the `stamp` of a run: the profile's values, and as data the drawn world and the base weights."""
    values = {"profile": run.profile.name, **run.profile.sections, **(parameters or {})}
    return stamp(values, run.seed, [run.path("world"), project_root() / "data" / "mini_base"])


# --------------------------------------------------------------------------------------------- records


def pooled_provenance(parameters: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one block for results of several runs: what they have in common, then what each run's own block says."""
    return {
        "parameters": dict(parameters),
        "runs": [{key: block[key] for key in RUN_KEYS} for block in blocks],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
















def read_metrics_file(path: Path, default: Any = None, of_run: bool = False) -> Any:
    """A metrics file: `rows`, each with a name and a value (of a run also the notebook), and `provenance`.

    Raises UserError for another shape.
    """
    found = read_object(path, default, rows=list, provenance=dict)
    needed = {"name", "value", *(["notebook"] if of_run else [])}
    for row in found["rows"] if found else ():
        if not isinstance(row, dict) or not needed <= set(row):
            raise UserError(f"{path} has a row without {', '.join(sorted(needed))}: delete it and make it again")
    return found


def notebook_records(path: Path, keys: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """The records in a manifest.json, by notebook. Raises UserError where one has no status, or none of `keys`."""
    found: dict[str, dict[str, Any]] = read_object(path, {"notebooks": {}}, notebooks=dict)["notebooks"]
    for name, record in found.items():
        if not isinstance(record, dict) or not {"status", *keys} <= set(record):
            raise UserError(f"{path} tells too little of notebook {name}: delete it and run the course again")
    return found


def record_metrics(
    run: Run, notebook: str, rows: Iterable[Mapping[str, Any]], parameters: Mapping[str, Any] | None = None
) -> Path:
    """Put a notebook's rows into the run's metrics.json in place of its earlier ones; renew the provenance.

    A row has name, value and, where they apply, low, high, n, unit. A value that is not finite becomes null
    with a reason. `parameters` are the notebook's own; provenance.notebooks keeps them with commit and time.
    """
    path = run.path("metrics.json")
    old = read_metrics_file(path, {"rows": [], "provenance": {}}, of_run=True)
    new = [_metric_row(notebook, row) for row in rows]
    names = [row["name"] for row in new]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"metrics of {notebook} named twice: {', '.join(repeated)}")
    kept = [row for row in old["rows"] if row["notebook"] != notebook]
    block = provenance(run)
    block["notebooks"] = old["provenance"].get("notebooks", {}) | {
        notebook: {"parameters": dict(parameters or {}), "commit": block["commit"], "time": block["time"]}
    }
    ordered = sorted(kept + new, key=lambda row: (row["notebook"], row["name"]))
    return write_json(path, {"rows": ordered, "provenance": block})


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Return the rows recorded so far (empty before the first)."""
    rows: list[dict[str, Any]] = read_metrics_file(run.path("metrics.json"), {"rows": []}, of_run=True)["rows"]
    return rows


def _metric_row(notebook: str, row: Mapping[str, Any]) -> dict[str, Any]:
    extra = set(row) - set(METRIC_KEYS) - {"reason"}
    if extra or "name" not in row or "value" not in row:
        raise ValueError(f"a metrics row of {notebook} needs name and value and knows {METRIC_KEYS}, got {sorted(row)}")
    full = dict.fromkeys(METRIC_KEYS) | {key: _plain(value) for key, value in row.items()} | {"notebook": notebook}
    if full["value"] is None:
        full["reason"] = row.get("reason") or "not defined: nothing to average over"
    return full


def _plain(value: Any) -> Any:
    """Turn a numpy scalar into Python's and a number that is not finite into None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
