"""Fetching models and data sets beforehand, so that everything later runs without a network.

Each lies in runs/hub/<owner>--<name>/<commit>/, and revision.json beside it says which commit was fetched; `data.hub`
owns that layout.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iadr1_lib.data import BENCHMARKS, EXPERT_AD, MODEL_FILES, Kind, download_once, hub_home, recorded_folder
from iadr1_lib.errors import UserError
from iadr1_lib.models.families import MODELS, named
from iadr1_lib.runs import Profile

PATTERNS: dict[Kind, list[str] | None] = {"model": MODEL_FILES, "dataset": None}


@dataclass(frozen=True)
class Item:
    """One model or data set.

    `size`: all its bytes, `missing`: those not on the disk yet; None without a network. `commit` is the one on the
    disk, or the hub's.
    """

    name: str
    kind: Kind
    commit: str | None
    size: int | None
    missing: int | None


def items(profile: Profile, model: str | None = None) -> list[Item]:
    """What a profile needs: its model (or the one named), its training data and the paper's benchmarks.

    Raises:
        UserError: the model is unknown, or ships with the project.
    """
    chosen = model or str(profile.section("model").get("name", ""))
    known = named(chosen)
    listed = ", ".join(name for name, entry in MODELS.items() if entry.hub_id)
    if known is None and chosen.count("/") != 1:
        raise UserError(f"unknown model {chosen}: choose from {listed}, or name a hub id (owner/name)")
    hub_id = known.hub_id if known else chosen
    if hub_id is None:
        raise UserError(f"the model {chosen} ships with the project and need not be fetched: choose from {listed}")
    training = profile.sections.get("data", {}).get("expert_ad", EXPERT_AD)
    data_sets = [name for name in (training, BENCHMARKS) if not Path(name).is_dir()]
    return [_look_up(hub_id, "model"), *(_look_up(name, "dataset") for name in data_sets)]


def _look_up(name: str, kind: Kind) -> Item:
    """Ask the disk, then the hub. UserError for a name that the hub does not know."""
    import httpx
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import filter_repo_objects

    folder = recorded_folder(name)
    if folder is not None:
        return Item(name, kind, folder.name, sum(_sizes(folder).values()), 0)
    try:
        info: Any = HfApi().repo_info(name, repo_type=kind, files_metadata=True)
    except errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no {name} for you: check the name, or log in if it is private") from None
    except (httpx.HTTPError, OSError):
        return Item(name, kind, None, None, None)
    siblings = filter_repo_objects(info.siblings or [], allow_patterns=PATTERNS[kind], key=lambda file: file.rfilename)
    sizes = {file.rfilename: int(file.size or 0) for file in siblings}
    there = _sizes(hub_home(name) / str(info.sha))
    missing = sum(size for file, size in sizes.items() if there.get(file) != size)
    return Item(name, kind, info.sha, sum(sizes.values()), missing)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a folder."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def free_bytes() -> int:
    """Free bytes on the disk that the hub's folders lie on."""
    return shutil.disk_usage(next(folder for folder in hub_home("x").parents if folder.exists())).free


def fetch(wanted: list[Item]) -> None:
    """Download what is not there; what is finished stays, and a download that broke off goes on.

    Raises:
        UserError: as `data.download_once`, or the disk is too small (then nothing is fetched).
    """
    missing, free = sum(item.missing or 0 for item in wanted), free_bytes()
    if missing > free:
        raise UserError(
            f"{missing / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free on the disk of "
            f"{hub_home('x').parent}: free some space, or let runs/hub be a link to another disk"
        )
    for item in wanted:
        print(f"{item.name} is in {download_once(item.name, kind=item.kind, patterns=PATTERNS[item.kind])}")
