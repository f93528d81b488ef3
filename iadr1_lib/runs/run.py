"""A run: one profile and one seed, and the folder that holds what they produce."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np

from iadr1_lib.errors import UserError
from iadr1_lib.runs.places import runs_folder
from iadr1_lib.runs.profiles import load_profile


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
        profile = self.profile
        if name == profile.sections["model"]["name"]:
            return self
        other = Run(profile.name, self.seed, self.folder.with_name(f"{self.folder.name}-{name.replace('/', '--')}"))
        sections = profile.sections | {"model": profile.sections["model"] | {"name": name}}
        other.profile = dataclasses.replace(profile, sections=sections)
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
