"""The paper's hub data sets (yanhui01/Expert-AD, yanhui01/Industrial_test) in the same table as every other source.

    samples = load_hub("yanhui01/Industrial_test")           # downloaded once, then read from the disk
    samples = read_snapshot("copy/of/Expert-AD")             # a copy that came another way

At the first download the commit is written into revision.json beside the data, and used from then on. The data sets
were not at hand when this was written: the formats are those of the released records, tested on drawn folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from iadr1_lib.answer import cell_of_words, parse_answer
from iadr1_lib.data.benchmarks import Problem, Table, is_inside, make_table
from iadr1_lib.data.rows import checked_rows, find_picture
from iadr1_lib.data.sources import Row, load_samples
from iadr1_lib.errors import UserError
from iadr1_lib.files import raise_if_full, read_json, read_text, write_json
from iadr1_lib.records import Sample, Stage, grid_of, stage_of
from iadr1_lib.runs import project_root

Kind = Literal["dataset", "model"]
# Weights, configurations, tokenizer and processor; not the same weights in other formats, nor pictures of a model card.
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_KINDS: dict[Kind, str] = {"dataset": "data set", "model": "model"}

# Folders that say nothing about what is in the picture.
_PLAIN_FOLDERS = frozenset({"image", "images", "img", "imgs", "data", "dataset", "train", "test", "query", "."})


def load_hub(name: str, revision: str | None = None, cache: str | Path | None = None) -> Table:
    """A data set of the Hugging Face hub, downloaded once and read as `read_snapshot` does.

    Args:
        name: such as "yanhui01/Expert-AD".
        revision: branch, tag or commit. None takes the commit of the first download, which revision.json names. A
            branch or tag also stays at the commit it was downloaded at: delete revision.json to look again.
        cache: folder for hub data sets; by default runs/hub in the project.

    Needs no network once the revision is there. Files lie in <cache>/<owner>--<name>/<commit>/.

    Raises:
        UserError: the name is unknown to the hub, there is no network, the disk is full, or the folder has none of
            the released formats.
    """
    return read_snapshot(download_once(name, revision, cache), name.split("/")[-1])


def hub_home(name: str, cache: str | Path | None = None) -> Path:
    """The folder of one data set or model of the hub: revision.json, and one folder per commit."""
    return Path(cache or project_root() / "runs" / "hub") / name.replace("/", "--")


def recorded_folder(name: str, revision: str | None = None, cache: str | Path | None = None) -> Path | None:
    """The folder of what was downloaded whole, or None. UserError for a note that is none."""
    home = hub_home(name, cache)
    known = _read_note(home / "revision.json")
    asked: dict[str, str] = known.get("asked", {})
    commit: str | None = known.get("revision") if revision is None else asked.get(revision, revision)
    whole = commit is not None and commit in asked.values() and (home / commit).is_dir()
    return home / str(commit) if whole else None


def download_once(
    name: str,
    revision: str | None = None,
    cache: str | Path | None = None,
    kind: Kind = "dataset",
    patterns: list[str] | None = None,
) -> Path:
    """The folder of a data set or model, downloaded (only files that match `patterns`) unless it is there already.

    Arguments and errors otherwise as `load_hub`. A download that broke off goes on.
    """
    if (found := recorded_folder(name, revision, cache)) is not None:
        return found
    home = hub_home(name, cache)
    known = _read_note(home / "revision.json")
    asked: dict[str, str] = known.get("asked", {})
    wanted = (known.get("revision") if revision is None else asked.get(revision, revision)) or "main"
    commit = _download(name, wanted, home, kind, patterns)
    # Written last: after a download that broke off, the next call goes on with it.
    note = {kind: name, "revision": known.get("revision", commit), "asked": asked | {wanted: commit}}
    write_json(home / "revision.json", note)
    return home / commit


def _read_note(path: Path) -> dict[str, Any]:
    note = read_json(path, {})
    if not isinstance(note, dict) or not isinstance(note.get("asked", {}), dict):
        raise UserError(f"{path} is no note of a download: delete it, the next call writes it again")
    return note


def _download(name: str, revision: str, home: Path, kind: Kind, patterns: list[str] | None) -> str:
    """Download a revision into <home>/<commit> and return the commit."""
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    try:
        api = huggingface_hub.HfApi()
        commit = (api.model_info if kind == "model" else api.dataset_info)(name, revision=revision).sha
        assert commit is not None  # the hub always names it
        chosen: dict[str, Any] = {"allow_patterns": patterns} if patterns else {}
        huggingface_hub.snapshot_download(name, repo_type=kind, revision=commit, local_dir=home / commit, **chosen)
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UserError(
            f"the hub has no {_KINDS[kind]} {name} for you: check the name, or log in if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision}: choose a branch, tag or commit of its page") from None
    except (httpx.HTTPError, OSError) as error:  # errors.HfHubHTTPError among them
        if isinstance(error, OSError):
            raise_if_full(error, home)
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        reading = " and read the copy with hub.read_snapshot" if kind == "dataset" else ""
        raise UserError(
            f"{name} could not be downloaded ({reason}): check the network and call again, or copy it here from a "
            f"machine that has it{reading}"
        ) from None
    return commit


def read_snapshot(folder: str | Path, name: str | None = None) -> Table:
    """The table of a local copy: PA-SFT and SC-GRPO records, and index files, whichever of them its JSON files hold.

    Rows of records are "train", with label, place and type from the answer's tags; of two pictures (reference, query)
    the query counts; `source` is "pa-sft" or "sc-grpo". Rows of an index are as `sources.load_samples` gives them.
    Paths start from the folder or from the file that names them. Pictures that are missing stay in the table:
    `benchmarks.check_health` lists them, and rows that say too little.

    Args:
        folder: the copy.
        name: of the data set, for records; by default the folder's name.

    Raises:
        UserError: there is no such folder, or no JSON file in it has a released format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: check the path of the data set's copy")
    rows: list[Row] = []
    unread: list[Problem] = []
    files = sorted(path for path in folder.rglob("*.json") if not _is_hidden(path, folder) and is_inside(path, folder))
    for path in files:
        try:
            rows += _read_file(path, folder, name or folder.resolve().name)
        except UserError as error:
            unread.append(Problem("broken row", str(path), str(error)))
    table = make_table([*rows, *unread], None, strict=False)
    if table:
        return table
    if table.passed_over:
        raise UserError(f"{folder} holds no record that can be read: {table.passed_over[0].message}")
    packed = [path.name for path in sorted(folder.iterdir()) if path.suffix in {".zip", ".tar", ".gz", ".parquet"}]
    hint = f"unpack {packed[0]} there" if packed else "check that the copy is whole"
    raise UserError(f"{folder} holds no JSON files in a released format: {hint}")


def released_records(source: str) -> dict[Stage, list[dict[str, Any]]]:
    """Training records of a hub data set or a copy of it, by stage, checked and with whole picture paths.

    Raises:
        UserError: as `load_hub`, or a record is faulty (`records.checked_rows`).
    """
    folder = (Path(source) if Path(source).is_dir() else download_once(source)).absolute()
    found: dict[Stage, list[dict[str, Any]]] = {}
    for path in sorted(path for path in folder.rglob("*.json") if not _is_hidden(path, folder)):
        content = read_json(path)
        stage = next((stage_of(row) for row in content if stage_of(row)), None) if isinstance(content, list) else None
        if stage:
            found.setdefault(stage, []).extend(checked_rows(content, stage, path, folder, path.parent))
    if not found:
        raise UserError(f"{folder} holds no training records in a released format: check that the copy is whole")
    return found


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _read_file(path: Path, folder: Path, name: str) -> list[Row]:
    """The rows of one JSON file; UserError if it has none of the formats."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} is no JSON file that can be read: download it again") from None
    if isinstance(content, list) and any(map(stage_of, content)):
        return list(_read_records(content, path, folder, name))
    entries = list(content.values()) if isinstance(content, dict) else []
    if entries and isinstance(entries[0], dict) and isinstance(entries[0].get("image_path"), str):
        table = load_samples(path, root=_base(entries[0]["image_path"], path, folder), strict=False)
        return [*table, *table.passed_over]
    raise UserError(f"{path} has none of the released formats: name a folder with records or an index file")


def _read_records(records: list[Any], path: Path, folder: Path, name: str) -> Iterator[Row]:
    for number, record in enumerate(records, start=1):
        try:
            yield _record_row(record, path, folder, name)
        except (LookupError, TypeError, AttributeError, ValueError):
            told = f"{path}: record {number} names no picture, or its answer is neither Yes nor No."
            yield Problem("broken row", str(path), told)


def _record_row(record: dict[str, Any], path: Path, folder: Path, name: str) -> Row:
    """One record as a row; an error of Python's where it does not say enough."""
    stage = stage_of(record)
    if stage == "pa_sft":
        images = record["images"]
        image = images if isinstance(images, str) else images[-1]
        text = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"][-1]
    else:
        image, text = record["image"], record["solution"]
    answer = parse_answer(text)
    if stage is None or answer.answer is None:
        raise ValueError("no label")
    picture = find_picture(image, folder, path.parent)
    if not is_inside(picture, folder):
        return Problem("outside", str(picture), f"{picture} lies outside of {folder}: correct {path}.")
    place = cell_of_words(answer.location, grid_of(record)) if answer.location else None
    defective = answer.answer == "yes"
    return Sample(
        image=str(picture),
        label=answer.answer,
        mask=None,
        type=(answer.type or None) if defective else None,
        location=place if defective else None,
        category=_category(image, name),
        benchmark=name,
        split="train",
        source=stage.replace("_", "-"),
    )


def _base(image: str, path: Path, folder: Path) -> Path:
    """The folder that a path in a file starts from: the data set's, or the file's own if the picture is there."""
    return path.parent if not os.path.isfile(folder / image) and os.path.isfile(path.parent / image) else folder


def _category(image: str, name: str) -> str:
    """The first folder of a picture's path that is no mere "images" and not the data set's name."""
    folders = PureWindowsPath(image).parts[:-1]  # either slash
    said = (part for part in folders if part.casefold() not in _PLAIN_FOLDERS | {name.casefold(), "\\"})
    return next(said, name)
