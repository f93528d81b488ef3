"""A run: one profile and one seed, and the folder that holds what they produce."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import numpy as np

from iadr1_lib.errors import UserError
from iadr1_lib.runs.choices import COMMAND_LINE, Choices, read_choices
from iadr1_lib.runs.places import runs_folder
from iadr1_lib.runs.profiles import load_profile

MODEL = "model.name"  # the setting that `--model` gives


class Run:
    """One run of the course: a profile, a seed, choices, and the folder that holds what the run produces.

    Args:
        folder: by default `run_folder(profile, seed, choices)`.
        choices: what differs from the profile; by default those that the folder holds.

    Attributes:
        profile: with the settings of the choices in it.
    """

    def __init__(
        self, profile: str, seed: int, folder: str | Path | None = None, choices: Choices | None = None
    ) -> None:
        self.seed = int(seed)
        own = run_folder(profile, self.seed, choices or Choices())
        self.folder = Path(folder).expanduser().resolve() if folder else own
        self.choices = read_choices(self.folder) if choices is None else choices
        self.profile = load_profile(profile).with_settings(self.choices.settings, COMMAND_LINE)

    @property
    def source(self) -> Literal["world", "folders", "hub"]:
        """Where the pictures come from: drawn, the choices' own data sets, or the paper's data sets of the hub."""
        if self.choices.data:
            return "folders"
        return "world" if "world" in self.profile.sections else "hub"

    def __repr__(self) -> str:
        return f"Run(profile={self.profile.name!r}, seed={self.seed}, folder={str(self.folder)!r})"

    def path(self, *parts: str) -> Path:
        """Return a path inside the run folder; nothing is created."""
        return self.folder.joinpath(*parts)

    def require(self, path: str | Path, made_by: str) -> Path:
        """Return `path` (relative to the run folder, or absolute) as `require` does."""
        plain = self.folder == run_folder(self.profile.name, self.seed, Choices())
        folder = "" if plain else f"--folder {self.folder} "
        return require(self.folder / path, made_by, f"--profile {self.profile.name} --seed {self.seed} {folder}")


def run_folder(profile: str, seed: int, choices: Choices) -> Path:
    """<runs>/<profile>-s<seed>, and the names of another model and of data sets of one's own, if they are chosen."""
    model = str(choices.settings.get(MODEL, ""))
    names = ["-".join(Path(model).parts[-2:]) if Path(model).is_dir() else model.replace("/", "--")]
    names += [Path(data).absolute().name for data in choices.data]
    return runs_folder() / "-".join(filter(None, [f"{profile}-s{seed}", *names]))


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
