"""The batch: executes the course's notebooks in order with papermill, each in its own kernel.

The run folder's manifest.json holds a record of each executed notebook, written right after it: what went in
(notebook, library, profile, seed, base weights) and which records of earlier notebooks it was built on. So a second
run executes only what is stale, and a killed run goes on where it stopped.

A notebook may say in its metadata `"iadr1": {"needs": ["04_pa_sft"], "makes": ["pa_sft/model"]}`. Without
`needs` it depends on all earlier notebooks; a file in `makes` that has vanished makes it stale ("a|b": both have).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from rich.table import Table
from rich.text import Text

from iadr1_lib.course.sources import source_hash
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.files import raise_if_full, write_json
from iadr1_lib.reporting import REPORT, build_page
from iadr1_lib.runs import Choices, Run, base_model_dir, data_hash, notebook_records, project_root, record_metrics

NUMBERED = re.compile(r"^\d\d_\w+$")
DONE, UP_TO_DATE, RUNNING, FAILED, NOT_RUN = "done", "up to date", "running", "failed", "not run"
POLL_SECONDS = 0.2


class OwnKernelManager(AsyncKernelManager):
    """Starts ipykernel under this very interpreter, whatever kernels are registered on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook: its status (done, up to date, failed, not run), seconds and a note."""

    notebook: str
    status: str
    seconds: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        if self.status == FAILED:
            return f"{self.status} in {self.note}"
        return (
            f"{self.status} in {self.seconds:.1f} s, {self.note}"
            if self.status == DONE
            else f"{self.status}, {self.note}"
        )


@dataclass(frozen=True)
class Notebook:
    """One notebook of the course: its name, its file, the notebooks it depends on and the files it makes."""

    name: str
    path: Path
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    code: str


# ------------------------------------------------------------------------------------------ what there is


def find_notebooks(root: Path | None = None, solutions: bool = False) -> list[Notebook]:
    """Return notebooks/NN_*.ipynb in reading order, with `solutions` those in which the exercises are solved.

    Raises UserError where there is none.
    """
    folder = (root or project_root()) / "notebooks"
    paths = sorted(path for path in folder.glob("*.ipynb") if NUMBERED.match(path.stem))
    if not paths:
        raise UserError(f"{folder} holds no numbered notebook: check out the project again")
    names = [path.stem for path in paths]
    if solutions:  # a notebook without exercises has no source of its own
        solved = [folder / "solutions" / path.name for path in paths]
        paths = [one if one.exists() else path for one, path in zip(solved, paths, strict=True)]
    return [_read_notebook(path, names[:index]) for index, path in enumerate(paths)]


def _read_notebook(path: Path, earlier: list[str]) -> Notebook:
    try:
        node = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise UserError(f"{path} is no notebook that can be read: check it out again") from error
    metadata = node.metadata.get("iadr1", {})
    needs = _matching(metadata.get("needs", earlier), earlier, f"iadr1.needs of {path.name}")
    code = json.dumps([[cell.cell_type, cell.source] for cell in node.cells])
    return Notebook(path.stem, path, tuple(needs), tuple(metadata.get("makes", ())), code)


def select(notebooks: Iterable[Notebook], only: str | Iterable[str] | None) -> list[Notebook]:
    """Return the notebooks that `only` names by number or name, as a list or with commas; all for None."""
    notebooks = list(notebooks)
    if only is None:
        return notebooks
    words = only.split(",") if isinstance(only, str) else list(only)
    wanted = _matching([word.strip() for word in words], [notebook.name for notebook in notebooks], "--only")
    return [notebook for notebook in notebooks if notebook.name in wanted]


def _matching(words: list[str], names: list[str], where: str) -> list[str]:
    known = {key for name in names for key in (name, name[:2])}
    if unknown := [word for word in words if word not in known]:
        raise WrongUse(f"{where} names {', '.join(map(repr, unknown))}, give numbers out of {', '.join(names)}")
    return [name for name in names if name in words or name[:2] in words]


# ------------------------------------------------------------------------------------------- what is stale


class Manifest:
    """The run folder's manifest.json: the record of each executed notebook, on disk after every change."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.path = run.path("manifest.json")
        root = project_root()
        digest = hashlib.sha256()
        for path in (*sorted((root / "iadr1_lib").rglob("*.py")), run.profile.path):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
        digest.update(data_hash([base_model_dir(), base_model_dir("photo").parent]).encode())
        if run.choices != Choices():
            digest.update(f"{run.choices} {source_hash(run)}".encode())
        self.ground = f"{digest.hexdigest()}-s{run.seed}"
        self.records: dict[str, dict[str, Any]] = notebook_records(self.path, {"id", "own", "inputs", "call", "fresh"})

    def own_hash(self, notebook: Notebook) -> str:
        """Return the hash of everything but other notebooks that a notebook's results depend on."""
        return hashlib.sha256(f"{self.ground}\0{notebook.code}".encode()).hexdigest()

    def inputs(self, notebook: Notebook) -> dict[str, str | None]:
        """Return the record ids of the notebooks this one needs (None for one that was never executed)."""
        return {name: self.records.get(name, {}).get("id") for name in notebook.needs}

    def is_current(self, notebook: Notebook) -> bool:
        """True if the notebook was executed from what is there now and its files are still there."""
        record = self.records.get(notebook.name, {})
        return (
            record.get("status") == DONE
            and record["own"] == self.own_hash(notebook)
            and record["inputs"] == self.inputs(notebook)
            and self.run.path("notebooks", notebook.path.name).exists()
            and all(any(self.run.path(one).exists() for one in made.split("|")) for made in notebook.makes)
        )

    def put(self, notebook: Notebook, **record: Any) -> None:
        """Store a notebook's record under a fresh id and write the manifest."""
        base = {"own": self.own_hash(notebook), "inputs": self.inputs(notebook), **record}
        identity = hashlib.sha256(json.dumps([base, time.time_ns()]).encode()).hexdigest()[:16]
        self.records[notebook.name] = {"id": identity, **base}
        notebooks = dict(sorted(self.records.items()))
        write_json(self.path, {"profile": self.run.profile.name, "seed": self.run.seed, "notebooks": notebooks})


# ---------------------------------------------------------------------------------------------- execution


class PeakMemory:
    """Polls the resident memory of this process and all its children, summed, while a `with` block runs."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        this = psutil.Process()
        while True:
            total = 0
            for process in (this, *this.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it ended between the listing and the question
                    total += process.memory_info().rss
            self.mib = max(self.mib, round(total / 2**20, 1))
            if self._stop.wait(POLL_SECONDS):
                return


def execute(notebook: Notebook, run: Run, force: bool = False, verbose: bool = False) -> str | None:
    """Execute one notebook into the run folder; return None, or one line on where and why it failed."""
    target = run.path("notebooks", notebook.path.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"profile": run.profile.name, "seed": run.seed, "run_folder": str(run.folder), "force": force}
    parameters["exercises"] = False  # nobody is there to answer: what has no answer is not checked
    try:
        papermill.execute_notebook(
            str(notebook.path),
            str(target),
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stdout_file=sys.stdout if verbose else None,
            stderr_file=sys.stderr if verbose else None,
            cwd=str(project_root()),
            kernel_manager_class=OwnKernelManager,
        )
    except PapermillExecutionError as error:
        return f"In [{error.exec_count}]: {error.ename}: {' '.join(str(error.evalue).split())} (see {target})"
    except DeadKernelError:
        return f"the kernel died, often for lack of memory; close other programs and run again (see {target})"
    except OSError as error:
        raise_if_full(error, run.folder)
        raise
    if notebook.name == REPORT:
        build_page(run.folder)
    return None


def run_notebooks(
    run: Run,
    only: str | Iterable[str] | None = None,
    force: bool = False,
    verbose: bool = False,
    say: Callable[[str], None] = print,
    solutions: bool = False,
) -> list[Outcome]:
    """Execute the course's notebooks in order and return one Outcome for each selected one.

    Skips what is up to date unless `force`; with `solutions` exercises are solved and checked. After a failure,
    notebooks that do not depend on the failed one still run. Seconds and peak memory go into the manifest and,
    under the name `batch`, into metrics.json.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    selected = select(find_notebooks(solutions=solutions), only)
    manifest = Manifest(run)
    call = {"call": datetime.now(UTC).isoformat(timespec="seconds"), "fresh": force or not manifest.records}
    outcomes: dict[str, Outcome] = {}
    for index, notebook in enumerate(selected, start=1):
        head = f"[{index}/{len(selected)}] {notebook.name}"
        failed = [name for name in notebook.needs if name in outcomes and outcomes[name].status in (FAILED, NOT_RUN)]
        if failed:
            outcome = Outcome(notebook.name, NOT_RUN, note=f"needs {failed[0]}")
        elif not force and manifest.is_current(notebook):
            outcome = Outcome(
                notebook.name, UP_TO_DATE, note=f"took {manifest.records[notebook.name]['seconds']:.0f} s"
            )
        else:
            say(f"{head} ...")
            outcome = _execute_and_record(notebook, manifest, call, force, verbose)
        outcomes[notebook.name] = outcome
        say(f"{head} {outcome}")
    return list(outcomes.values())


def _execute_and_record(
    notebook: Notebook, manifest: Manifest, call: dict[str, Any], force: bool, verbose: bool
) -> Outcome:
    started = time.perf_counter()
    manifest.put(notebook, status=RUNNING, **call)  # so that a kill leaves it stale, and what depends on it
    with PeakMemory() as memory:
        problem = execute(notebook, manifest.run, force, verbose)
    seconds = round(time.perf_counter() - started, 2)
    status = FAILED if problem else DONE
    manifest.put(notebook, status=status, seconds=seconds, peak_mib=memory.mib, problem=problem, **call)
    record_metrics(manifest.run, "batch", batch_rows(manifest.records))
    return Outcome(notebook.name, status, seconds, problem or f"peak {memory.mib:.0f} MiB")


def batch_rows(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return metrics rows: seconds per notebook and in all, highest memory, and whether one call did it all.

    "from scratch" is 1 if every notebook was executed by one call that found an empty run folder or was
    forced: only then is the sum of seconds what a newcomer waits for.
    """
    done = {name: record for name, record in records.items() if record["status"] == DONE}
    seconds = {name: record["seconds"] for name, record in done.items()}
    peak = max((record["peak_mib"] for record in done.values()), default=None)
    one_call = len({record["call"] for record in records.values()}) == 1
    scratch = one_call and all(record["fresh"] for record in done.values()) and len(done) == len(records)
    rows = [{"name": f"{name} seconds", "value": value, "unit": "s"} for name, value in seconds.items()]
    return [
        *rows,
        {"name": "course seconds", "value": round(sum(seconds.values()), 2), "n": len(done), "unit": "s"},
        {"name": "peak memory", "value": peak, "n": len(done), "unit": "MiB"},
        {"name": "from scratch", "value": int(scratch), "n": len(done)},
    ]


def outcome_table(outcomes: Iterable[Outcome]) -> Table:
    """Return the closing table: notebook, status, time."""
    colours = {DONE: "green", UP_TO_DATE: "cyan", FAILED: "red", NOT_RUN: "yellow"}
    table = Table("notebook", "status", "time", "note")
    for outcome in outcomes:
        time_taken = f"{outcome.seconds:.1f} s" if outcome.status in (DONE, FAILED) else ""
        status = Text(outcome.status, colours[outcome.status])
        note = Text("" if outcome.status == DONE else outcome.note)  # a notebook's error may look like markup
        table.add_row(outcome.notebook, status, time_taken, note)
    return table
