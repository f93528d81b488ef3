"""Where things are: the project's folder and the folder of runs."""

from __future__ import annotations

import os
from pathlib import Path

from iadr1_lib.errors import UserError


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


def _is_root(folder: Path) -> bool:
    return (folder / "notebooks").is_dir() and (folder / "iadr1_lib").is_dir()


def base_model_dir(name: str = "mini") -> Path:
    """Return the folder of the base weights of "mini" or "photo", the models that ship with the project."""
    return project_root() / "data" / ("photo_model/base" if name == "photo" else f"{name}_base")


def model_path(model: str) -> str:
    """The folder of a model that ships by its word, "photo"; anything else (a folder, a model of an API) as it is."""
    if model != "photo" or Path(model).exists():
        return model
    return str(project_root() / "data" / "photo_model" / "sc_grpo")


def runs_folder() -> Path:
    """Return the folder that holds all runs: `IADR1_RUNS`, else runs/ in the project."""
    given = os.environ.get("IADR1_RUNS")
    return Path(given).expanduser().resolve() if given else project_root() / "runs"
