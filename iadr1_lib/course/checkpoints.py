"""Checkpoints of a run: what each notebook made, packed for other machines, so that a room can start anywhere."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from iadr1_lib.course.batch import find_notebooks, select
from iadr1_lib.data import pictures_of
from iadr1_lib.errors import UserError, WrongUse, one_line
from iadr1_lib.records import read_rows
from iadr1_lib.runs import runs_folder

# What a notebook makes in the run folder and later ones read.
PARTS = {
    "02": ("world/pa_sft", "world/sc_grpo", "world/dev"),
    "03": ("expert_ad",),
    "04": ("pa_sft",),
    "07": ("sc_grpo", "control"),
    "08": ("world/test", "predictions", "metrics.json"),
}
ALSO = {"02": ("run.json",), "08": ("references", "test_openings.jsonl")}  # not in every run
PLACE = "{IADR1_RUN}"  # stands in packed texts for the run folder, whose path they name
TEXTS = (".json", ".jsonl", ".csv", ".md")


def require_packable(run: Path) -> None:
    """Raise UserError where the folder holds no run, or one whose pictures lie elsewhere."""
    if not any((run / part).exists() for parts in PARTS.values() for part in parts):
        raise UserError(f"{run} holds no run: name a folder such as runs/mini-s0 for --run")
    for records in sorted(run.glob("expert_ad/*.json")):
        outside = [path for path in _pictures(records) if not path.absolute().is_relative_to(run.absolute())]
        if outside:
            raise UserError(
                f"{records} names pictures outside the run folder ({outside[0]}), which cannot be packed: name a "
                "run on drawn pictures that lies where it was made"
            )


def _pictures(records: Path) -> list[Path]:
    return pictures_of(read_rows(records), records.parent) if records.stem in ("pa_sft", "sc_grpo", "control") else []


def pack(run: Path, out: Path) -> Iterator[str]:
    """Write what each notebook made in the run as NN_name.zip; yields a line on each, and on what is missing."""
    run = run.absolute()
    places = {json.dumps(str(place))[1:-1] for place in (run, run.resolve())}
    for notebook in find_notebooks():
        parts = PARTS.get(notebook.name[:2], ())
        files = [file for part in (*parts, *ALSO.get(notebook.name[:2], ())) for file in _files(run / part)]
        if files:
            out.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(out / f"{notebook.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for file in files:
                    content = file.read_bytes()
                    for place in places if file.suffix in TEXTS else ():
                        content = content.replace(place.encode(), PLACE.encode())
                    archive.writestr(f"{run.name}/{file.relative_to(run).as_posix()}", content)
            yield f"checkpoints/{notebook.name}.zip: {size_of([out / f'{notebook.name}.zip'])}"
        if missing := [part for part in parts if not (run / part).exists()]:
            yield f"missing in the checkpoints: {', '.join(missing)} (iadr1 run --only {notebook.name[:2]} makes it)"


def _files(part: Path) -> list[Path]:
    inside = (path for path in part.rglob("*") if "unfinished" not in path.parts)
    return [path for path in sorted([part] if part.is_file() else inside) if path.is_file()]


def unpack(kit: Path, start: str) -> str:
    """Put what the notebooks before `start` made into runs/; what is there already stays. Returns a line on it.

    Raises:
        WrongUse: `start` is not the number of one notebook.
        UserError: the kit has no checkpoints, or a damaged one.
    """
    chosen = select(find_notebooks(), start)
    if len(chosen) != 1:
        raise WrongUse(f"--start {start} names {len(chosen)} notebooks: name one, such as 05")
    archives = sorted((kit / "checkpoints").glob("[0-9][0-9]_*.zip"))
    if not archives:
        raise UserError(f"{kit / 'checkpoints'} holds no checkpoints: make the kit again with iadr1 kit --run FOLDER")
    folder, kept = runs_folder(), 0
    for path in archives:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                run = folder / names[0].split("/")[0]
                for name in names if path.name[:2] < chosen[0].name[:2] else ():
                    kept += not _put(archive, name, run)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise UserError(f"{path} cannot be unpacked ({one_line(error)}): copy the kit again") from error
    return f"{run} is ready for notebook {chosen[0].name}" + (f"; {kept} files were there and stay" if kept else "")


def _put(archive: zipfile.ZipFile, name: str, run: Path) -> bool:
    target = (run.parent / name).resolve()
    if not target.is_relative_to(run.resolve()):
        raise UserError(f"{archive.filename} holds {name}, which lies outside the run: it is no checkpoint of a kit")
    if target.exists():
        return False
    content = archive.read(name)
    if target.suffix in TEXTS:
        content = content.replace(PLACE.encode(), json.dumps(str(run))[1:-1].encode())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return True


def size_of(files: Sequence[Path]) -> str:
    """The files' size together, in words."""
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
