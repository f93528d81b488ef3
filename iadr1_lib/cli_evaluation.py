"""The commands of `iadr1` that judge pictures and score answers: evaluate, sanity, score, inspect."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from iadr1_lib.cli_options import (
    ConcurrencyOption,
    CostCapOption,
    FolderOrNameOption,
    KeyVariableOption,
    PaceOption,
    RepliesOption,
    SeedOption,
    make_console,
    print_table,
)
from iadr1_lib.protocols import COURSE
from iadr1_lib.runs import Run, UserError, WrongUse, read_json, stamp, write_json

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from iadr1_lib import benchmarks
    from iadr1_lib.benchmarks import Sample
    from iadr1_lib.protocols import Protocol
    from iadr1_lib.speed import Speed

REPORTED = (
    "balanced_accuracy",
    "accuracy_normal",
    "accuracy_defective",
    "share_unparsed",
    "location",
    "type",
)
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
        int | None, typer.Option(min=1, help="Longest answer; by default the protocol's, or 96.")
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
    from iadr1_lib import api_models, scoring
    from iadr1_lib.references import references

    asked = _protocol(Path(model), protocol, kind) if protocol else None
    parser = parser or (asked.parser if asked and not answer_only else "fair")
    if parser not in scoring.PARSERS:
        raise WrongUse(f"unknown parser {parser}: choose from {', '.join(scoring.PARSERS)}")
    manner = {"concurrency": concurrency, "requests_per_minute": requests_per_minute, "key_variable": key_variable}
    endpoint = api_models.endpoint_named(model, logprobs, max_tokens=max_tokens, **manner)
    if endpoint and (protocol or answer_only or profile_speed):
        raise WrongUse(
            "--protocol, --answer-only and --profile-speed are for model folders, not for models behind an API"
        )
    if shots and endpoint:
        raise WrongUse("--shots 1 is for model folders: models behind an API are shown one picture")
    table = _load(data, layout, root, why=f"iadr1 evaluate --model {model}")
    samples = _test_samples(table, data, one_label)
    mode = (prompt or (Prompt.YES_NO if endpoint else Prompt.BARE)).value
    if profile_speed:
        from iadr1_lib import speed

        lengths = _lengths(batch_size, answer_only, asked)
        print_table(_speed_table(speed.measure(Path(model), samples, prompt=asked or mode, **lengths)))
        return
    beside: dict[str, Any] = {}
    if shots:
        pool = [*table, *(_load(train) if train else [])]
        how: dict[str, Any] = {"kind": reference_kind.value, "seed": seed, "templates": table.templates}
        beside["references"] = references(samples, pool, **how)
    out = out or Path(f"evaluation_{data.resolve().name}.json")
    predictions = _begin(out)
    if endpoint:
        from iadr1_lib.remote import Remote

        remote = Remote(endpoint, replies or out.with_suffix(".replies"), cost_cap)
        api_models.predict_remote(remote, samples, predictions, prompt=mode, protocol=COURSE, seed=seed)
    else:
        from iadr1_lib import inference

        options: dict[str, Any] = {"prompt": mode, "protocol": asked or COURSE, "batch_size": batch_size, "seed": seed}
        options |= {"answer_only": answer_only, "max_new_tokens": max_new_tokens}
        with _kept_answers(predictions, len(samples)):
            inference.predict(Path(model), samples, predictions, **options, **beside)
    scores = scoring.score(scoring.read_predictions(predictions), parser, seed)
    said = {"model": str(model), "data": str(data), "parser": parser, "shots": shots, "answer_only": answer_only}
    said |= {"prompt": asked.prompt if asked else mode, "protocol": asked.name if asked else COURSE}
    said |= {"reference_kind": reference_kind.value} if shots else {}
    rows = scoring.metric_rows(scores, data.resolve().name)
    write_json(out, {"rows": rows, "provenance": stamp(said, seed, _hashed(data, samples))})
    _tell(scores, table)
    print(f"{len(samples)} pictures; metrics in {out}, predictions in {predictions}")


def _test_samples(table: benchmarks.Table, data: Path, one_label: bool) -> list[Sample]:
    """The pictures to ask about; UserError where a label is missing and nobody said that this is wanted."""
    from iadr1_lib import benchmarks

    samples = [sample for sample in table if sample.split == "test"]
    if one_sided := benchmarks.missing_label(samples, data):
        if not one_label:
            raise UserError(f"{one_sided} Put some there, or give --one-label to have that.")
        print(one_sided)
    return samples


def _begin(out: Path) -> Path:
    """The file of predictions beside a metrics file; both are begun anew where the metrics say that it was finished."""
    predictions = out.with_suffix(".predictions.jsonl")
    if out.exists():
        predictions.unlink(missing_ok=True)
        out.unlink()
    return predictions


def _tell(scores: pd.DataFrame, table: benchmarks.Table) -> None:
    """Print the scores, and what could not be asked or was refused."""
    from iadr1_lib import benchmarks

    make_console().print(_score_table(scores))
    if table.passed_over:
        print_table(benchmarks.health_table(table.passed_over).drop(columns="meaning"))
    if unplaced := benchmarks.without_place(sample for sample in table if sample.split == "test"):
        print(f"{len(unplaced)} defective pictures have no mask that says where: location is not scored for them")
    if refused := int(scores.loc[scores["metric"] == "refused", "value"].sum()):
        print(f"{refused} pictures were refused: they count as not readable")


def _load(
    data: Path, layout: str | None = None, root: Path | None = None, why: str = "iadr1 sanity"
) -> benchmarks.Table:
    """The table of a folder, of an index file, or of what has a name: the solar cells and the mini benchmarks."""
    from iadr1_lib import course, elpv, sources

    word = None if data.exists() else str(data).lower()
    if word == elpv.WORD:
        return elpv.load()
    if word == course.WORD:  # the same pictures for every seed
        return course.benchmark_table(Run(word, seed=0), why)
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
    from iadr1_lib import sanity as room

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
    from iadr1_lib import protocols

    config = read_json(model / "config.json")
    if config is None:
        raise UserError(f"there is no model in {model} (config.json is missing): name a folder that holds one")
    return protocols.protocol(name.value, protocols.family_of(config), kind.value)


def _lengths(batch_size: int, answer_only: bool, asked: Protocol | None) -> dict[str, Any]:
    length = {"max_new_tokens": asked.max_new_tokens} if asked else {}
    return {"batch_size": batch_size, "answer_only": answer_only, **length}


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
    from iadr1_lib import scoring

    if parser not in (*scoring.PARSERS, "all"):
        raise WrongUse(f"unknown parser {parser}: choose from {', '.join(scoring.PARSERS)}, all")
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
        make_console().print(_score_table(scores[parser]))
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
    from iadr1_lib import answer, benchmarks

    pictures = [benchmarks.open_image(path) for path in images]
    from iadr1_lib import inference

    texts = inference.answer_images(model, pictures, prompt=prompt.value)
    for path, picture, text in zip(images, pictures, texts, strict=True):
        said = answer.parse_answer(text)
        print(f"{path} ({picture.width} x {picture.height})")
        for name, value in (
            ("answer", said.answer or f"none that can be read; the model wrote: {text.strip()!r}"),
            ("type", said.type),
            ("location", said.location),
            ("reasoning", said.reasoning),
        ):
            print(f"  {name:<10}{value or '-'}")
        if save_marked:
            print(f"  {'marked':<10}{_save_marked(save_marked, path, picture, said)}")


def _save_marked(folder: Path, path: Path, picture: Image.Image, said: Any) -> Path:
    from iadr1_lib import answer, plots

    cell = answer.cell_of_words(said.location or "")
    words = [word for word in (said.answer, said.type, said.location) if word]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{path.parent.name}_{path.stem}_marked.png"
    plots.mark_cell(picture, cell, ", ".join(words) or "no answer").save(target)
    return target


def _score_table(table: pd.DataFrame) -> Table:
    """One row per benchmark; metrics in percent with their 95 % interval."""
    one = table["benchmark"].nunique() == 2  # itself and the mean, which would say it again
    shown = table[table["metric"].isin(REPORTED) & ~(one & (table["benchmark"] == "mean"))]
    columns = [metric for metric in REPORTED if metric in set(shown["metric"])]
    rendered = Table("benchmark", *(column.replace("_", " ") for column in columns))
    for benchmark, group in shown.groupby("benchmark", sort=False):
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        rendered.add_row(str(benchmark), *(_percent(by_metric.get(column)) for column in columns))
    return rendered


def _percent(row: dict[Any, Any] | None) -> str:
    if row is None or row["value"] != row["value"]:
        return "-"
    interval = "" if row["low"] != row["low"] else f" [{row['low']:.0f}, {row['high']:.0f}]"
    return f"{row['value']:.1f}" + interval.replace("[", r"\[")
