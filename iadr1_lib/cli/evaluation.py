"""The commands of `iadr1` that judge pictures and score answers: evaluate, sanity, score, inspect."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iadr1_lib.cli.options import (
    ConcurrencyOption,
    CostCapOption,
    FolderOrNameOption,
    KeyVariableOption,
    PaceOption,
    RepliesOption,
    SeedOption,
    print_table,
)
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.evaluation import COURSE
from iadr1_lib.files import write_json
from iadr1_lib.runs import Run, read_metrics_file, stamp

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from iadr1_lib.data import benchmarks
    from iadr1_lib.evaluation import Protocol
    from iadr1_lib.evaluation.speed import Speed
    from iadr1_lib.records import Sample

REPORTED = (
    "balanced_accuracy",
    "accuracy_normal",
    "accuracy_defective",
    "share_unparsed",
    "location",
    "type",
)
AT_ONCE = 32  # pictures that `inspect` opens and asks about together
commands = typer.Typer()


class ReferenceKind(StrEnum):
    """Which normal picture stands before the one in question: a similar one, or one drawn by the seed."""

    SIMILAR = "similar"
    RANDOM = "random"


class Prompt(StrEnum):
    """How a picture is asked about: the question alone, or with "answer yes or no" for an untrained model."""

    BARE = "bare"
    YES_NO = "yes-no"


class ProtocolName(StrEnum):
    """How every detail of asking is set: as the released test scripts do, or one way for all models."""

    RELEASED = "released"
    FAIR = "fair"


class Kind(StrEnum):
    """Whether a model is as published or came out of PA-SFT or SC-GRPO."""

    BASE = "base"
    TUNED = "tuned"


PromptOption = Annotated[Prompt, typer.Option(help="yes-no is the fair way to ask an untrained model.")]
ModelOption = Annotated[Path, typer.Option(help="Model folder, such as runs/mini-s0/sc_grpo/model.")]


@commands.command()
def evaluate(
    model: FolderOrNameOption,
    data: Annotated[
        Path,
        typer.Option(
            help="Data set's root, one category, an index file, elpv (solar cells) or mini (the drawn benchmarks)."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Metrics file; predictions lie beside it.")] = None,
    parser: Annotated[
        str | None, typer.Option(help="How answers are read: fair (default), strict, ...; a protocol brings its own.")
    ] = None,
    prompt: Annotated[
        Prompt | None, typer.Option(help="By default bare for a folder, yes-no for a model behind an API.")
    ] = None,
    protocol: Annotated[
        ProtocolName | None, typer.Option(help="Ask by a protocol, by the model's family; --prompt then says nothing.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="For --protocol: what the model is.")] = Kind.TUNED,
    answer_only: Annotated[
        bool, typer.Option("--answer-only", help="One pass for P(Yes); nothing is written.")
    ] = False,
    profile_speed: Annotated[bool, typer.Option("--profile-speed", help="Only say how fast it is, and why.")] = False,
    layout: Annotated[str | None, typer.Option(help="Such as mvtec or visa; by default found by looking.")] = None,
    root: Annotated[Path | None, typer.Option(help="Of an index file: the folder that its paths start from.")] = None,
    shots: Annotated[int, typer.Option(min=0, max=1, help="1: a normal reference before each picture.")] = 0,
    reference_kind: Annotated[ReferenceKind, typer.Option(help="For --shots 1.")] = ReferenceKind.SIMILAR,
    train: Annotated[Path | None, typer.Option(help="For --shots 1: where normal training pictures lie.")] = None,
    one_label: Annotated[
        bool, typer.Option("--one-label", help="Score a set whose good or defective pictures are not there.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; by default what the model's training or family needs.")
    ] = None,
    concurrency: ConcurrencyOption = 4,
    requests_per_minute: PaceOption = None,
    cost_cap: CostCapOption = None,
    replies: RepliesOption = None,
    key_variable: KeyVariableOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="API: most tokens of a reply, thinking included.")] = 600,
    logprobs: Annotated[
        bool | None, typer.Option(help="API: ask for log-probabilities; by default where servers give them.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Score the test pictures of any data set whose layout is known; writes predictions and metrics.

    A run that was stopped goes on; one that was finished is made anew (from the kept replies, if behind an API).
    """
    from iadr1_lib.data import benchmarks
    from iadr1_lib.evaluation import references, scoring
    from iadr1_lib.remote import predictor

    manner = {"concurrency": concurrency, "requests_per_minute": requests_per_minute, "key_variable": key_variable}
    endpoint = predictor.endpoint_named(model, logprobs, max_tokens=max_tokens, **manner)
    if endpoint and (protocol or answer_only or profile_speed):
        raise WrongUse(
            "--protocol, --answer-only and --profile-speed are for model folders, not for models behind an API"
        )
    if shots and endpoint:
        raise WrongUse("--shots 1 is for model folders: models behind an API are shown one picture")
    asked = _protocol(Path(model), protocol, kind) if protocol else None
    parser = parser or (asked.parser if asked and not answer_only else "fair")
    if parser not in scoring.PARSERS:
        raise WrongUse(f"unknown parser {parser}: choose from {', '.join(scoring.PARSERS)}")
    if not endpoint:
        from iadr1_lib.evaluation import prediction
        from iadr1_lib.models import require_weights

        require_weights(Path(model))
    mode = (prompt or (Prompt.YES_NO if endpoint else Prompt.BARE)).value
    said = {"model": str(model), "data": str(data), "parser": parser, "shots": shots, "answer_only": answer_only}
    said |= {"prompt": asked.prompt if asked else mode, "protocol": asked.name if asked else COURSE}
    said |= {"reference_kind": reference_kind.value} if shots else {}
    where = {"layout": layout, "root": root and str(root.resolve()), "train": train and str(train.resolve())}
    out = _with_ending(out or _default_out(said | where | {"seed": seed}))
    require_metrics_file(out)
    table = _load(data, layout, root, why=f"iadr1 evaluate --model {model}")
    samples = _test_samples(table, data, one_label)
    if profile_speed:
        from iadr1_lib.evaluation import speed

        lengths: dict[str, Any] = {"batch_size": batch_size, "answer_only": answer_only}
        lengths |= {"max_new_tokens": max_new_tokens}
        print_table(_speed_table(speed.measure(Path(model), samples, prompt=asked or mode, **lengths)))
        return
    beside: dict[str, Any] = {}
    if shots:
        pool = [*table, *(_load(train) if train else [])]
        benchmarks.share_depth(sample.image for sample in pool)
        how: dict[str, Any] = {"kind": reference_kind.value, "seed": seed, "templates": table.templates}
        beside["references"] = references(samples, pool, **how)
    predictions = _beside(out, ".predictions.jsonl")
    # A finished evaluation stays whole until the new one is.
    begun = predictions.with_name(f"{predictions.name}.new") if out.exists() else predictions
    if endpoint:
        from iadr1_lib.remote import Remote

        remote = Remote(endpoint, replies or _beside(out, ".replies"), cost_cap)
        predictor.predict_remote(remote, samples, begun, prompt=mode, protocol=COURSE, seed=seed)
    else:
        options: dict[str, Any] = {"prompt": mode, "protocol": asked or COURSE, "batch_size": batch_size, "seed": seed}
        options |= {"answer_only": answer_only, "max_new_tokens": max_new_tokens}
        with _kept_answers(begun, len(samples)):
            prediction.predict(Path(model), samples, begun, **options, **beside)
    answers = scoring.read_predictions(begun)
    scores = scoring.score(answers, parser, seed)
    said |= {"grid": int(answers["grid"].iloc[0])} if "grid" in answers else {}
    os.replace(begun, predictions)
    rows = scoring.metric_rows(scores, data.resolve().name)
    write_json(out, {"rows": rows, "provenance": stamp(said, seed, _hashed(data, samples))})
    _tell(scores, table)
    print(f"{len(samples)} pictures; metrics in {out}, predictions in {predictions}")


def _test_samples(table: benchmarks.Table, data: Path, one_label: bool) -> list[Sample]:
    """The pictures to ask about; UserError where a label is missing and nobody said that this is wanted."""
    from iadr1_lib.data import benchmarks

    samples = [sample for sample in table if sample.split == "test"]
    if one_sided := benchmarks.missing_label(samples, data):
        if not one_label:
            raise UserError(f"{one_sided} Put some there, or give --one-label to have that.")
        print(one_sided)
    return samples


def _default_out(said: dict[str, Any]) -> Path:
    """A metrics file that no evaluation of another model, of other data or with another way of asking writes."""
    places = {key: Path(said[key]) for key in ("model", "data")}
    places = {key: path.resolve() if path.exists() else path for key, path in places.items()}
    words = re.sub(r"[^\w.-]+", "-", "_".join([*places["model"].parts[-2:], places["data"].name]))
    whole = said | {key: str(path) for key, path in places.items()}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return Path(f"evaluation_{words[:100]}_{digest[:8]}.json")


def _with_ending(out: Path) -> Path:
    """The metrics file's name, which ends in .json: a name may have other dots."""
    return out if out.suffix == ".json" else out.with_name(f"{out.name}.json")


def _beside(out: Path, ending: str) -> Path:
    """What lies beside a metrics file."""
    return out.with_name(out.stem + ending)


def require_metrics_file(path: Path | None) -> None:
    """Raise UserError where a file would be overwritten that holds anything but metrics."""
    try:
        read_metrics_file(path) if path else None
    except UserError as error:
        raise UserError(f"{path} is there and holds no metrics: name another file for --out") from error


def _tell(scores: pd.DataFrame, table: benchmarks.Table) -> None:
    """Print the scores, and what could not be asked or was refused."""
    from iadr1_lib.data import benchmarks

    print_table(_score_table(scores))
    if table.passed_over:
        print_table(benchmarks.health_table(table.passed_over).drop(columns="meaning"))
    if unplaced := benchmarks.without_place(sample for sample in table if sample.split == "test"):
        print(f"{len(unplaced)} defective pictures have no mask that says where: location is not scored for them")
    _tell_oddities(scores)


def _tell_oddities(scores: pd.DataFrame) -> None:
    """Print what was refused or cut, and why a balanced accuracy is not defined."""
    counts = scores[scores["unit"] == "images"].groupby("metric")["value"].sum()
    if refused := int(counts.get("refused", 0)):
        print(f"{refused} pictures were refused: they count as not readable")
    if cut := int(counts.get("cut", 0)):
        print(
            f"{cut} answers reached the limit of length and count as far as they go: evaluate again with a larger "
            "--max-new-tokens (--max-tokens for a model behind an API)"
        )
    undefined = scores[
        (scores["metric"] == "balanced_accuracy") & (scores["note"] != "") & (scores["benchmark"] != "mean")
    ]
    for row in undefined.to_dict("records"):
        print(f"balanced accuracy of {row['benchmark']} is not defined: {row['note']}")


def _load(
    data: Path, layout: str | None = None, root: Path | None = None, why: str = "iadr1 sanity"
) -> benchmarks.Table:
    """The table of a folder, of an index file, or of what has a name: the solar cells and the mini benchmarks."""
    from iadr1_lib.course import steps
    from iadr1_lib.data import elpv, sources

    word = None if data.exists() else str(data).lower()
    if word == elpv.WORD:
        return elpv.load()
    if word == steps.WORD:  # the same pictures for every seed
        return steps.benchmark_table(Run(word, seed=0), why)
    return sources.load_samples(data, layout, root=root)


def _hashed(data: Path, samples: Sequence[Sample]) -> list[Path]:
    """What stands for the data in a file's provenance: a folder as a whole, else the pictures that were asked about."""
    return [data] if data.is_dir() else [data, *(Path(sample.image) for sample in samples)]


@commands.command()
def sanity(
    data: Annotated[list[Path], typer.Option(help="Benchmark: folder, index file, elpv or mini. Repeatable.")],
    train: Annotated[list[Path] | None, typer.Option(help="Training pictures. Repeatable.")] = None,
    layout: Annotated[str | None, typer.Option(help="Of --data; by default found by looking.")] = None,
    root: Annotated[Path | None, typer.Option(help="Of an index file: the folder that its paths start from.")] = None,
    duplicates: Annotated[bool, typer.Option(help="Also look for nearly the same pictures.")] = True,
    out: Annotated[Path | None, typer.Option(help="Metrics file to write: rows and provenance.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Say what a benchmark measures before any model has looked: simple predictors, training pictures in the test."""
    from iadr1_lib.evaluation import sanity as room

    require_metrics_file(out)
    tables = [_load(folder, layout, root) for folder in data]
    samples = [sample for table in tables for sample in table if sample.split == "test"]
    training = [sample for table in tables for sample in table if sample.split == "train"]
    training += [sample for folder in train or [] for sample in _load(folder)]
    found = room.baselines(samples, training, seed)
    print_table(room.table(found))
    for sentence in room.readings(found):
        print(sentence)
    if duplicates:
        for line in room.duplicate_report(training, samples):
            print(line)
    if out:
        rows = room.metric_rows(found)
        hashed = [path for named, table in zip(data, tables, strict=True) for path in _hashed(named, table)]
        said = {"data": [str(folder) for folder in data], "train": [str(folder) for folder in train or []]}
        print(f"metrics in {write_json(out, {'rows': rows, 'provenance': stamp(said, seed, hashed)})}")


@contextmanager
def _kept_answers(predictions: Path, asked: int) -> Iterator[None]:
    """Add to a UserError where the answers that were given before it are kept."""
    try:
        yield
    except UserError as error:
        if not predictions.exists():
            raise
        done = len(predictions.read_bytes().splitlines())
        kept = f"{done} of {asked} answers are kept in {predictions}, and the same command goes on from there"
        raise UserError(f"{error} {kept}.") from error


def _protocol(model: Path, name: ProtocolName, kind: Kind) -> Protocol:
    from iadr1_lib.evaluation import protocols
    from iadr1_lib.models import families

    return protocols.protocol(name.value, protocols.family_of(families.model_config(model)), kind.value)


def _speed_table(found: Speed) -> pd.DataFrame:
    """Seconds and share of each part of answering, and what they make per image."""
    import pandas as pd

    whole = found.images / found.images_per_second
    rows = [(name, f"{spent:.2f}", f"{100 * spent / whole:.0f} %") for name, spent in found.seconds.items()]
    said = f"{found.images_per_second:.1f} images/s, {found.tokens_per_answer:.0f} tokens each"
    return pd.DataFrame([*rows, (said, f"{whole:.2f}", "100 %")], columns=["part", "seconds", "share"])


@commands.command()
def score(
    predictions: Annotated[Path, typer.Option(help="JSON Lines that an evaluation wrote.")],
    parser: Annotated[str, typer.Option(help="How answers are read: fair, strict, ..., or all of them.")] = "fair",
    out: Annotated[Path | None, typer.Option(help="Metrics file to write: rows and provenance.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Score saved answers again, without a model: metrics, P(Yes), agreement of reasoning and tags."""
    from iadr1_lib.evaluation import scoring

    if parser not in (*scoring.PARSERS, "all"):
        raise WrongUse(f"unknown parser {parser}: choose from {', '.join(scoring.PARSERS)}, all")
    require_metrics_file(out)
    table = scoring.read_predictions(predictions)
    protocol = scoring.require_one_protocol({str(predictions): table})
    read_by = list(scoring.PARSERS) if parser == "all" else [parser]
    scores = {name: scoring.score(table, name, seed) for name in read_by}
    rows = [
        row
        for name, scored in scores.items()
        for found in (scored, scoring.agreement(table, name, seed))
        for row in scoring.metric_rows(found, name)
    ]
    rows += scoring.metric_rows(scoring.ranking(table, seed), "p_yes")
    if parser == "all":
        print_table(scoring.parser_table(table).round(1).reset_index())
    else:
        print_table(_score_table(scores[parser]))
    _tell_oddities(next(iter(scores.values())))
    if odd := scoring.unknown_types(table):
        print(f"types that the vocabulary lacks are right only word by word: {', '.join(odd)}")
    print(f"{len(table)} answers, protocol {protocol}")
    if out:
        digest = hashlib.sha256(predictions.read_bytes()).hexdigest()
        said = {"predictions": str(predictions), "sha256": digest, "parser": parser, "protocol": protocol}
        print(f"metrics in {write_json(out, {'rows': rows, 'provenance': stamp(said, seed, [])})}")


@commands.command()
def inspect(
    images: Annotated[list[Path], typer.Argument(help="Pictures of any size and mode.")],
    model: ModelOption,
    save_marked: Annotated[Path | None, typer.Option(help="Folder for copies with the cell marked.")] = None,
    prompt: PromptOption = Prompt.BARE,
) -> None:
    """Ask the model about pictures: prints answer, type, location and reasoning."""
    from iadr1_lib import answer
    from iadr1_lib.data import benchmarks
    from iadr1_lib.evaluation import prediction

    if save_marked:
        save_marked.mkdir(parents=True, exist_ok=True)
    ask, grid = prediction.answerer(model, prompt.value), prediction.grid_of(model)
    benchmarks.share_depth(images)
    faults = []
    for start in range(0, len(images), AT_ONCE):
        shown = []
        for path in images[start : start + AT_ONCE]:
            try:
                shown.append((path, benchmarks.open_image(path)))
            except UserError as error:
                faults.append(str(error))
        answers = ask([picture for _, picture in shown]) if shown else []
        for (path, picture), (text, _, cut) in zip(shown, answers, strict=True):
            said = answer.parse_answer(text)
            print(f"{path} ({picture.width} x {picture.height})")
            for name, value in (
                ("answer", said.answer or f"none that can be read; the model wrote: {text.strip()!r}"),
                ("type", said.type),
                ("location", said.location),
                ("reasoning", said.reasoning),
            ):
                print(f"  {name:<10}{value or '-'}")
            if cut:
                print("  the answer reached the limit of length and was cut there")
            if save_marked:
                print(f"  {'marked':<10}{_save_marked(save_marked, path, picture, said, grid)}")
    if faults:
        raise UserError(f"{len(faults)} of {len(images)} pictures could not be judged. {' '.join(faults)}")


def _save_marked(folder: Path, path: Path, picture: Image.Image, said: Any, grid: int) -> Path:
    from iadr1_lib import answer
    from iadr1_lib.reporting import plots

    cell = answer.cell_of_words(said.location or "", grid)
    words = [word for word in (said.answer, said.type, said.location) if word]
    place = path.resolve()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:8]  # many pictures are called good/000.png
    target = folder / f"{place.parent.name}_{place.stem}_{digest}_marked.png"
    plots.mark_cell(picture, cell, ", ".join(words) or "no answer", grid=grid).save(target)
    return target


def _score_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per benchmark; metrics in percent with their 95 % interval."""
    import pandas as pd

    one = table["benchmark"].nunique() == 2  # itself and the mean, which would say it again
    shown = table[table["metric"].isin(REPORTED) & ~(one & (table["benchmark"] == "mean"))]
    cells: dict[str, dict[str, str]] = {}
    for row in shown.to_dict("records"):
        cells.setdefault(row["benchmark"], {})[row["metric"]] = _percent(row)
    frame = pd.DataFrame.from_dict(cells, orient="index")
    frame = frame[[metric for metric in REPORTED if metric in frame]].rename_axis("benchmark").reset_index()
    return frame.rename(columns=lambda column: column.replace("_", " "))


def _percent(row: dict[Any, Any]) -> str:
    if row["value"] != row["value"]:
        return "–"
    interval = "" if row["low"] != row["low"] else f" [{row['low']:.0f}, {row['high']:.0f}]"
    return f"{row['value']:.1f}{interval}"
