"""Data sets and models of the Hugging Face hub: downloaded once, pinned to a commit, read without a network.

    samples = load_hub("yanhui01/Industrial_test")           # downloaded once, then read from the disk
    samples = read_snapshot("copy/of/Expert-AD")             # a copy that came another way

Files lie in runs/hub/<owner>--<name>/<commit>/. At the first download the commit is written into revision.json beside
them, and used from then on. The paper's data sets (yanhui01/Expert-AD, yanhui01/Industrial_test) were not at hand when
this was written: the formats are those of the released records, tested on drawn folders.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from iadr1_lib.answer import cell_of_words, parse_answer
from iadr1_lib.data.folders import is_inside
from iadr1_lib.data.index import load_json
from iadr1_lib.data.reading import load_samples
from iadr1_lib.data.rows import checked_rows, find_picture
from iadr1_lib.data.table import Problem, Table, table_of
from iadr1_lib.data.type_names import data_set_named
from iadr1_lib.errors import UserError, one_line
from iadr1_lib.files import raise_if_full, read_json, read_object, write_json
from iadr1_lib.records import Sample, Stage, grid_of, stage_of
from iadr1_lib.runs import project_root

Kind = Literal["dataset", "model"]
EXPERT_AD, BENCHMARKS = "yanhui01/Expert-AD", "yanhui01/Industrial_test"  # the paper's
SIX = ("MVTec-AD", "VisA", "MPDD", "DAGM", "DTD-Synthetic", "KolektorSDD")  # in the order of its tables
# Weights, configurations, tokenizer and processor; not the same weights in other formats, nor pictures of a model card.
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
# Folders that say nothing about what is in the picture.
_PLAIN_FOLDERS = frozenset({"image", "images", "img", "imgs", "data", "dataset", "train", "test", "query", ".", "\\"})


def load_hub(name: str, revision: str | None = None, cache: str | Path | None = None) -> Table:
    """A data set of the Hugging Face hub; arguments and errors as of `download_once` and `read_snapshot`."""
    return read_snapshot(download_once(name, revision, cache), name.split("/")[-1])


def paper_benchmarks(copy: str | Path | None = None) -> Table:
    """The paper's six test sets, named as in `data_set_named`, from a local copy or the hub.

    Raises:
        UserError: as `load_hub` and `read_snapshot`, or a set is missing.
    """
    table = read_snapshot(copy) if copy else load_hub(BENCHMARKS)
    samples = [replace(sample, benchmark=data_set_named(sample.benchmark) or "") for sample in table]
    if missing := set(SIX) - {sample.benchmark for sample in samples}:
        raise UserError(f"{copy or BENCHMARKS} lacks {', '.join(sorted(missing))}: the six are {', '.join(SIX)}")
    six = Table((sample for sample in samples if sample.benchmark in SIX), table.passed_over)
    six.templates = table.templates
    return six


def hub_home(name: str, cache: str | Path | None = None) -> Path:
    """The folder of one data set or model of the hub: revision.json, and one folder per commit."""
    return Path(cache or project_root() / "runs" / "hub") / name.replace("/", "--")


def recorded_folder(name: str, revision: str | None = None, cache: str | Path | None = None) -> Path | None:
    """The folder of what was downloaded whole, or None. UserError for a revision.json that cannot be read."""
    known = read_object(hub_home(name, cache) / "revision.json", {"asked": {}}, asked=dict)
    commit = known.get("revision") if revision is None else known["asked"].get(revision, revision)
    folder = hub_home(name, cache) / str(commit)
    return folder if commit in known["asked"].values() and folder.is_dir() else None


def download_once(
    name: str,
    revision: str | None = None,
    cache: str | Path | None = None,
    kind: Kind = "dataset",
    patterns: list[str] | None = None,
) -> Path:
    """The folder of a data set or model, downloaded unless it is there already. A download that broke off goes on.

    Args:
        name: such as "yanhui01/Expert-AD".
        revision: branch, tag or commit; by default that of the first download, which revision.json names. A branch
            stays at the commit it was downloaded at: delete revision.json to look again.
        cache: folder for what comes from the hub; by default runs/hub in the project.
        patterns: only files that match one of them.

    Raises:
        UserError: the hub does not know the name or does not give it out, there is no network, or the disk is full.
    """
    if folder := recorded_folder(name, revision, cache):
        return folder
    home = hub_home(name, cache)
    known = read_json(home / "revision.json", {"asked": {}})
    wanted = (known.get("revision") if revision is None else known["asked"].get(revision, revision)) or "main"
    commit = _download(name, wanted, home, kind, patterns)
    # Written last: after a download that broke off, the next call goes on with it.
    asked = known["asked"] | {wanted: commit}
    write_json(home / "revision.json", {kind: name, "revision": known.get("revision", commit), "asked": asked})
    return home / commit


def _download(name: str, revision: str, home: Path, kind: Kind, patterns: list[str] | None) -> str:
    """Download a revision into <home>/<commit> and return the commit."""
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    own = ", or build a set of your own from any folder with masks: iadr1 expert-ad" if kind == "dataset" else ""
    try:
        api = huggingface_hub.HfApi()
        commit = str((api.model_info if kind == "model" else api.dataset_info)(name, revision=revision).sha)
        chosen: dict[str, Any] = {"allow_patterns": patterns} if patterns else {}
        huggingface_hub.snapshot_download(name, repo_type=kind, revision=commit, local_dir=home / commit, **chosen)
        return commit
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
        reason = f"{name} is given out on request only: ask for access at {page}, run hf auth login and call again{own}"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        what = "data set" if kind == "dataset" else kind
        reason = f"the hub has no {what} {name} for you: check the name, or run hf auth login if it is private{own}"
    except errors.RevisionNotFoundError:
        reason = f"{name} has no revision {revision}: choose a branch, tag or commit of its page"
    except (httpx.HTTPError, OSError) as error:  # errors.HfHubHTTPError among them
        if isinstance(error, OSError):
            raise_if_full(error, home)
        copy = " and read the copy with read_snapshot" if kind == "dataset" else ""
        reason = one_line(str(error) or type(error).__name__, 120)
        reason = f"{name} could not be downloaded ({reason}): check the network and call again, or copy it here{copy}"
    raise UserError(reason)


def read_snapshot(folder: str | Path, name: str | None = None) -> Table:
    """The table of a local copy: PA-SFT and SC-GRPO records, and index files, whichever of them its JSON files hold.

    Rows of records are "train", with label, place and type from the answer's tags; of two pictures (reference, query)
    the query counts; `source` is "pa-sft" or "sc-grpo". Rows of an index are as `load_samples` gives them. Paths start
    from the folder or from the file that names them. `check_health` lists missing pictures and rows that say too
    little. `name` is that of the data set, for records; by default the folder's.

    Raises:
        UserError: there is no such folder, or no JSON file in it has a released format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: check the path of the data set's copy")
    rows: list[Sample | Problem] = []
    for path in _json_files(folder):
        try:
            rows += _read_file(path, folder, name or folder.resolve().name)
        except UserError as error:
            rows.append(Problem("broken row", str(path), str(error)))
    table = table_of(rows)
    if not table:
        reason = next((problem.message for problem in table.passed_over), "check that the copy is whole and unpacked")
        raise UserError(f"{folder} holds no JSON file with records that can be read: {reason}")
    return table


def released_records(source: str) -> dict[Stage, list[dict[str, Any]]]:
    """Training records of a hub data set or a copy of it, by stage, checked (see `checked_rows`)."""
    folder = (Path(source) if Path(source).is_dir() else download_once(source)).absolute()
    records: dict[Stage, list[dict[str, Any]]] = {}
    for path in _json_files(folder):
        content = read_json(path)
        stage = next((stage_of(row) for row in content if stage_of(row)), None) if isinstance(content, list) else None
        if stage:
            records.setdefault(stage, []).extend(checked_rows(content, stage, path, folder, path.parent))
    if not records:
        raise UserError(f"{folder} holds no training records in a released format: check that the copy is whole")
    return records


def _json_files(folder: Path) -> list[Path]:
    """The JSON files of a copy, without hidden folders and links that lead out."""
    paths = sorted(folder.rglob("*.json"))
    hidden = {path for path in paths if any(part.startswith(".") for part in path.relative_to(folder).parts)}
    return [path for path in paths if path not in hidden and is_inside(path, folder)]


def _read_file(path: Path, folder: Path, name: str) -> list[Sample | Problem]:
    """The rows of one JSON file; UserError if it has none of the formats."""
    content = load_json(path)
    if isinstance(content, list) and any(map(stage_of, content)):
        return [_record_row(record, number, path, folder, name) for number, record in enumerate(content, start=1)]
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    if isinstance(first, dict) and isinstance(image := first.get("image_path"), str):
        beside = not os.path.isfile(folder / image) and os.path.isfile(path.parent / image)
        table = load_samples(path, root=path.parent if beside else folder, strict=False)
        return [*table, *table.passed_over]
    raise UserError(f"{path} has none of the released formats: name a folder with records or an index file")


def _record_row(record: Any, number: int, path: Path, folder: Path, name: str) -> Sample | Problem:
    try:
        stage = stage_of(record)
        if stage == "pa_sft":
            images = record["images"]
            image = images if isinstance(images, str) else images[-1]
            text = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"][-1]
        else:
            image, text = record["image"], record["solution"]
        answer, picture = parse_answer(text), find_picture(image, folder, path.parent)
        if stage is None or answer.answer is None:
            raise ValueError("no label")
        location = cell_of_words(answer.location, grid_of(record)) if answer.location else None
    except (LookupError, TypeError, AttributeError, ValueError):
        message = f"{path}: record {number} names no picture, or its answer is neither Yes nor No."
        return Problem("broken row", str(path), message)
    if not is_inside(picture, folder):
        return Problem("outside", str(picture), f"{picture} lies outside of {folder}: correct {path}.")
    kind, place = (answer.type or None, location) if answer.answer == "yes" else (None, None)
    source = stage.replace("_", "-")
    return Sample(str(picture), answer.answer, None, kind, place, _category(image, name), name, "train", source)


def _category(image: str, name: str) -> str:
    """The first folder of a picture's path that is no mere "images" and not the data set's name."""
    folders = PureWindowsPath(image).parts[:-1]  # either slash
    return next((part for part in folders if part.casefold() not in _PLAIN_FOLDERS | {name.casefold()}), name)
