"""Fetching models and data sets beforehand, so that everything later runs without a network.

Each lies in runs/hub/<owner>--<name>/<commit>/, and revision.json beside it says which commit was fetched; `hub` owns
that layout. A model is then loaded from `fetched_folder(hub_id)`, also with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from iadr1_lib.data import MODEL_FILES, Kind, download_once, hub_home, recorded_folder
from iadr1_lib.errors import UserError
from iadr1_lib.models.families import MODELS, named
from iadr1_lib.runs import Profile

EXPERT_AD, BENCHMARKS = "yanhui01/Expert-AD", "yanhui01/Industrial_test"  # the paper's


@dataclass(frozen=True)
class Item:
    """One model or data set. `size`: all its bytes, `missing`: those not on the disk yet; None where no network tells.

    `commit` is the one on the disk, or the hub's; `there`: whether it was fetched whole before.
    """

    name: str
    kind: Kind
    commit: str | None
    size: int | None
    missing: int | None
    there: bool


def fetched_folder(hub_id: str, cache: str | Path | None = None) -> Path | None:
    """The folder of a model or data set that was fetched whole, or None. Needs no network."""
    return recorded_folder(hub_id, cache=cache)


def items(profile: Profile, model: str | None = None, cache: str | Path | None = None) -> list[Item]:
    """What a profile needs: its model (or the one named), its training data and the paper's benchmarks.

    Raises:
        UserError: the model is unknown, or ships with the project.
    """
    chosen = model or str(profile.section("model").get("name", ""))
    known = named(chosen)
    listed = ", ".join(name for name, entry in MODELS.items() if entry.hub_id)
    if known is None and chosen.count("/") != 1:
        raise UserError(f"unknown model {chosen}: choose from {listed}, or name a hub id (owner/name)")
    if known is not None and known.hub_id is None:
        raise UserError(f"the model {known.name} ships with the project and need not be fetched: choose from {listed}")
    hub_id = known.hub_id if known is not None and known.hub_id else chosen
    training = profile.sections.get("data", {}).get("expert_ad", EXPERT_AD)
    sets = [name for name in (training, BENCHMARKS) if not Path(name).is_dir()]
    wanted: list[tuple[str, Kind]] = [(hub_id, "model"), *((name, "dataset") for name in sets)]
    return [_look_up(name, kind, cache) for name, kind in wanted]


def _look_up(name: str, kind: Kind, cache: str | Path | None) -> Item:
    folder = recorded_folder(name, cache=cache)
    if folder is not None:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Item(name, kind, folder.name, size, 0, there=True)
    found = _ask_hub(name, kind)
    if found is None:
        return Item(name, kind, None, None, None, there=False)
    commit, files = found
    home = hub_home(name, cache) / commit
    missing = sum(size for file, size in files.items() if not _is_there(home / file, size))
    return Item(name, kind, commit, sum(files.values()), missing, there=False)


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _ask_hub(name: str, kind: Kind) -> tuple[str, dict[str, int]] | None:
    """(commit, size of each file that would be fetched), or None without a network. UserError for an unknown name."""
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi()
    try:
        info = (api.model_info if kind == "model" else api.dataset_info)(name, revision="main", files_metadata=True)
    except errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no {name} for you: check the name, or log in if it is private") from None
    except (httpx.HTTPError, OSError):
        return None
    files = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
    if kind == "model":
        files = {file: size for file, size in files.items() if any(fnmatch(file, p) for p in MODEL_FILES)}
    return str(info.sha), files


def free_bytes(cache: str | Path | None = None) -> int:
    """Free bytes on the disk that the hub's folders lie on."""
    place = hub_home("x", cache)
    return shutil.disk_usage(next(folder for folder in place.parents if folder.exists())).free


def require_room(wanted: Iterable[Item], free: int) -> None:
    """UserError if what is missing is larger than what is free. Sizes that nobody tells count as nothing."""
    missing = sum(item.missing or 0 for item in wanted)
    if missing > free:
        raise UserError(
            f"{missing / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free on the disk of "
            f"{hub_home('x').parent}: free some space, or let runs/hub be a link to another disk"
        )


def fetch(wanted: Iterable[Item], cache: str | Path | None = None, say: Callable[[str], None] = print) -> None:
    """Download what is not there; what is finished stays, and a download that broke off goes on.

    Raises:
        UserError: as `hub.download_once`, or the disk is too small (then nothing is fetched).
    """
    wanted = list(wanted)
    require_room(wanted, free_bytes(cache))
    for item in wanted:
        patterns = MODEL_FILES if item.kind == "model" else None
        folder = download_once(item.name, cache=cache, kind=item.kind, patterns=patterns)
        say(f"{item.name} is in {folder}")
