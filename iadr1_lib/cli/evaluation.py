"""Commands that score a model on data sets: evaluate, sanity, score."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iadr1_lib.cli.options import (
    ApiOptions,
    LayoutOption,
    MetricsOption,
    Prompt,
    RootOption,
    SeedOption,
    option_groups,
    print_table,
    require_metrics_file,
)
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.files import write_json
from iadr1_lib.runs import Run, model_path, stamp

if TYPE_CHECKING:
    import pandas as pd

    from iadr1_lib.data import Table
    from iadr1_lib.evaluation import Protocol
    from iadr1_lib.records import Sample

REPORTED = ("balanced_accuracy", "accuracy_normal", "accuracy_defective", "share_unparsed", "location", "type")
commands = typer.Typer()


@dataclass
class DataOptions:
    """Which pictures are asked about."""

    data: Annotated[Path | None, typer.Option(help="Data set's root, one category, an index file, elpv or mini.")] = (
        None
    )
    benchmarks: Annotated[
        Literal["all"] | None, typer.Option(help="all: the paper's six test sets, of the hub or of a copy in --data.")
    ] = None
    layout: LayoutOption = None
    root: RootOption = None
    one_label: Annotated[bool, typer.Option("--one-label", help="Score a set that has only one of the labels.")] = False

    @property
    def place(self) -> Path:
        """Where the pictures are, or the word for them; WrongUse where neither option says so."""
        if self.data is None and self.benchmarks is None:
            raise WrongUse("what shall be asked about? Give --data FOLDER, or --benchmarks all for the paper's six")
        return self.data or Path("benchmarks")

    def load(self, why: str) -> Table:
        """The table that the options name."""
        from iadr1_lib.data import paper_benchmarks

        if self.benchmarks:
            return paper_benchmarks(self.data)
        return _load(self.place, self.layout, self.root, why)


@dataclass
class AskingOptions:
    """How a model is asked, and how its answers are read."""

    parser: Annotated[str | None, typer.Option(help="How answers are read: fair (default), strict, ...")] = None
    prompt: Annotated[Prompt | None, typer.Option(help="By default bare; yes-no behind an API.")] = None
    protocol: Annotated[
        Literal["released", "fair"] | None, typer.Option(help="As the paper's scripts, or one way for all models.")
    ] = None
    kind: Annotated[Literal["base", "tuned"], typer.Option(help="For --protocol: what the model is.")] = "tuned"
    answer_only: Annotated[bool, typer.Option("--answer-only", help="One pass for P(Yes); nothing is written.")] = False
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 32
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, thinking included; by default the model's, API: 600.")
    ] = None


@dataclass
class ReferenceOptions:
    """Whether a normal picture stands before the one in question, and which."""

    shots: Annotated[
        int, typer.Option(min=0, max=4, help="1: a normal reference before each picture; photo compares with up to 4.")
    ] = 0
    reference_kind: Annotated[Literal["similar", "random"], typer.Option(help="For --shots.")] = "similar"
    train: Annotated[Path | None, typer.Option(help="For --shots: where normal training pictures lie.")] = None


@commands.command()
@option_groups
def evaluate(
    model: Annotated[
        str,  # a path would lose a slash of an address
        typer.Option(
            help="Model folder, photo (which ships), or a model behind an API: gpt-4.1, claude-sonnet-4, openai:NAME@http://host/v1."
        ),
    ],
    source: DataOptions,
    how: AskingOptions,
    reference: ReferenceOptions,
    api: ApiOptions,
    out: Annotated[Path | None, typer.Option(help="Metrics file; predictions lie beside it.")] = None,
    profile_speed: Annotated[bool, typer.Option("--profile-speed", help="Only say how fast it is, and why.")] = False,
    seed: SeedOption = 0,
) -> None:
    """Score the test pictures of any data set whose layout is known; writes predictions and metrics.

    A run that was stopped goes on; one that was finished is made anew (from the kept replies, if behind an API).
    """
    from iadr1_lib.evaluation import COURSE, PARSERS, metric_rows, protocols, ranking, read_predictions, score
    from iadr1_lib.remote import Remote, endpoint_named, predict_remote

    model = model_path(model)
    place = source.place  # raises where nothing is to be asked about
    limit = {"max_tokens": how.max_new_tokens} if how.max_new_tokens else {}
    endpoint = endpoint_named(model, **limit, **api.endpoint())
    if endpoint and (how.protocol or how.answer_only or profile_speed or reference.shots):
        folders_only = "--protocol, --answer-only, --profile-speed and --shots"
        raise WrongUse(f"{folders_only} are for model folders, not for models behind an API")
    protocol = None
    if not endpoint:
        from iadr1_lib.models import model_config, require_weights

        if how.protocol:
            family = protocols.family_of(model_config(Path(model)))
            protocol = protocols.protocol(how.protocol, family, how.kind)
        require_weights(Path(model))
    parser = how.parser or (protocol.parser if protocol and not how.answer_only else "fair")
    if parser not in PARSERS:
        raise WrongUse(f"unknown parser {parser}: choose from {', '.join(PARSERS)}")
    mode: str = how.prompt or ("yes-no" if endpoint else "bare")
    if how.answer_only and not endpoint and not how.prompt:
        from iadr1_lib.evaluation import prediction

        mode = prediction.answer_only_prompt(Path(model), mode)
    settings: dict[str, Any] = {"model": model, "data": str(place), "parser": parser}
    settings |= {"shots": reference.shots, "answer_only": how.answer_only}
    settings |= {"prompt": protocol.prompt if protocol else mode, "protocol": protocol.name if protocol else COURSE}
    settings |= {"reference_kind": reference.reference_kind} if reference.shots else {}
    out = _metrics_file(out, settings, source, reference, seed)
    require_metrics_file(out)
    table = source.load(why=f"iadr1 evaluate --model {model}")
    samples = _test_samples(table, source)
    if profile_speed:
        _print_speed(Path(model), samples, protocol or mode, how)
        return
    predictions = out.with_name(f"{out.stem}.predictions.jsonl")
    # A finished evaluation stays whole until the new one is.
    begun = predictions.with_name(f"{predictions.name}.new") if out.exists() else predictions
    if endpoint:
        remote = Remote(endpoint, api.replies or out.with_name(f"{out.stem}.replies"), api.cost_cap)
        predict_remote(remote, samples, begun, prompt=mode, protocol=COURSE, seed=seed)
    else:
        options: dict[str, Any] = {"prompt": mode, "protocol": protocol or COURSE, "seed": seed}
        options |= _references(samples, table, reference, seed) if reference.shots else {}
        _ask_model(Path(model), samples, begun, how, options)
    answers = read_predictions(begun)
    scores = score(answers, parser, seed)
    settings |= {"grid": int(answers["grid"].iloc[0])} if "grid" in answers else {}
    os.replace(begun, predictions)
    rows = metric_rows(scores, place.resolve().name)
    if how.answer_only:  # read at one place in all pictures, so that it orders them
        ranked = ranking(answers, seed)
        rows += metric_rows(ranked, f"{place.resolve().name}/p_yes")
    write_json(out, {"rows": rows, "provenance": stamp(settings, seed, _hashed(place, samples))})
    _print_scores(scores, table)
    if how.answer_only:
        print("How P(Yes) orders the pictures, whatever was answered:")
        print_table(_score_table(ranked, ("auroc", "average_precision")))
    if source.benchmarks:
        from iadr1_lib.reporting import beside_table_one

        print("The paper's Table 1, balanced accuracy in %, with this model's row:")
        print_table(beside_table_one(scores, model))
    print(f"{len(samples)} pictures; metrics in {out}, predictions in {predictions}")


def _ask_model(model: Path, samples: list[Sample], out: Path, how: AskingOptions, options: dict[str, Any]) -> None:
    """Ask a model in a folder; where that ends early, the error says where the answers before it are."""
    from iadr1_lib.evaluation import prediction

    options |= {key: getattr(how, key) for key in ("answer_only", "batch_size", "max_new_tokens")}
    try:
        prediction.predict(model, samples, out, **options)
    except UserError as error:
        if not out.exists():
            raise
        kept = f"{len(out.read_bytes().splitlines())} of {len(samples)} answers are kept in {out}"
        raise UserError(f"{error} {kept}, and the same command goes on from there.") from error


def _references(samples: list[Sample], table: Table, reference: ReferenceOptions, seed: int) -> dict[str, Any]:
    """A normal picture for each sample, as the keyword argument of `predict`."""
    from iadr1_lib.data import share_depth
    from iadr1_lib.evaluation import lending, references

    pool = [*table, *(_load(reference.train) if reference.train else [])]
    share_depth(sample.image for sample in pool)
    chosen = references(
        samples, pool, kind=reference.reference_kind, seed=seed, templates=table.templates, shots=reference.shots
    )
    if categories := lending(samples, chosen):
        print(
            f"{', '.join(categories)}: no train/good pictures there, so the good test pictures of a category serve as "
            "references, each for the others"
        )
    return {"references": chosen}


def _print_speed(model: Path, samples: list[Sample], prompt: Protocol | str, how: AskingOptions) -> None:
    """Print seconds and share of each part of answering, and what they make per image."""
    import pandas as pd

    from iadr1_lib.evaluation import prediction

    options = {key: getattr(how, key) for key in ("answer_only", "batch_size", "max_new_tokens")}
    seconds, tokens = prediction.measure_speed(model, samples, prompt=prompt, **options)
    whole = sum(seconds.values())
    rows = [(name, f"{spent:.2f}", f"{100 * spent / whole:.0f} %") for name, spent in seconds.items()]
    total = f"{len(samples) / whole:.1f} images/s, {tokens / seconds['answer']:.0f} tokens/s"
    print_table(pd.DataFrame([*rows, (total, f"{whole:.2f}", "100 %")], columns=["part", "seconds", "share"]))


def _metrics_file(
    out: Path | None, settings: dict[str, Any], source: DataOptions, reference: ReferenceOptions, seed: int
) -> Path:
    """The metrics file: `out`, or a name that no evaluation of another model, of other data or by another way takes."""
    if out is None:
        places = {key: Path(settings[key]) for key in ("model", "data")}
        places = {key: path.resolve() if path.exists() else path for key, path in places.items()}
        words = re.sub(r"[^\w.-]+", "-", "_".join([*places["model"].parts[-2:], places["data"].name]))
        identity = settings | {key: str(path) for key, path in places.items()} | {"seed": seed, "layout": source.layout}
        identity |= {"root": source.root and str(source.root.resolve())}
        identity |= {"train": reference.train and str(reference.train.resolve())}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        out = Path(f"evaluation_{words[:100]}_{digest[:8]}.json")
    return out if out.suffix == ".json" else out.with_name(f"{out.name}.json")  # a name may have other dots


def _load(data: Path, layout: str | None = None, root: Path | None = None, why: str = "iadr1 sanity") -> Table:
    """The table of a folder, of an index file, or of what has a name: the solar cells and the mini benchmarks."""
    from iadr1_lib.course import sources
    from iadr1_lib.data import elpv, load_samples

    word = None if data.exists() else str(data).lower()
    if word == elpv.WORD:
        return elpv.load()
    if word == sources.WORD:  # the same pictures for every seed
        return sources.benchmark_table(Run(word, seed=0), why)
    return load_samples(data, layout, root=root)


def _test_samples(table: Table, source: DataOptions) -> list[Sample]:
    """The pictures to ask about; UserError where a label is missing and nobody said that this is wanted."""
    from iadr1_lib.data import missing_label

    samples = [sample for sample in table if sample.split == "test"]
    if one_sided := missing_label(samples, source.place):
        if not source.one_label:
            raise UserError(f"{one_sided} Put some there, or give --one-label to score only that.")
        print(one_sided)
    return samples


def _hashed(data: Path, samples: Sequence[Sample]) -> list[Path]:
    """What stands for the data in a file's provenance: a folder as a whole, else the pictures that were asked about."""
    return [data] if data.is_dir() else [data, *(Path(sample.image) for sample in samples)]


def _print_scores(scores: pd.DataFrame, table: Table) -> None:
    """Print the scores, and what could not be asked or was refused."""
    from iadr1_lib.data import health_table, without_place

    print_table(_score_table(scores))
    if table.passed_over:
        print_table(health_table(table.passed_over).drop(columns="meaning"))
    if unplaced := without_place(sample for sample in table if sample.split == "test"):
        print(f"{len(unplaced)} defective pictures have no mask that says where: location is not scored for them")
    _print_oddities(scores)


def _print_oddities(scores: pd.DataFrame) -> None:
    """Print what was refused or cut, and why a balanced accuracy is not defined."""
    counts = scores[scores["unit"] == "images"].groupby("metric")["value"].sum()
    if refused := int(counts.get("refused", 0)):
        print(f"{refused} pictures were refused: they count as not readable")
    if cut := int(counts.get("cut", 0)):
        print(
            f"{cut} answers reached the limit of length and count as far as they go: evaluate again with a larger "
            "--max-new-tokens"
        )
    balanced = scores[(scores["metric"] == "balanced_accuracy") & (scores["benchmark"] != "mean")]
    for row in balanced[balanced["note"] != ""].to_dict("records"):
        print(f"balanced accuracy of {row['benchmark']} is not defined: {row['note']}")


def _score_table(scores: pd.DataFrame, metrics: Sequence[str] = REPORTED) -> pd.DataFrame:
    """One row per benchmark; metrics in percent with their 95 % interval."""
    from iadr1_lib.evaluation import interval_text

    one = scores["benchmark"].nunique() == 2  # itself and the mean, which would say it again
    shown = scores[scores["metric"].isin(metrics) & ~(one & (scores["benchmark"] == "mean"))]
    shown = shown.assign(text=[interval_text(row) for row in shown.to_dict("records")])
    wide = shown.pivot_table("text", "benchmark", "metric", aggfunc="first", sort=False)
    wide = wide[[metric for metric in metrics if metric in wide]].reset_index()
    return wide.rename(columns=lambda column: column.replace("_", " "))


@commands.command()
def sanity(
    data: Annotated[list[Path], typer.Option(help="Benchmark: folder, index file, elpv or mini. Repeatable.")],
    train: Annotated[list[Path] | None, typer.Option(help="Training pictures. Repeatable.")] = None,
    layout: LayoutOption = None,
    root: RootOption = None,
    duplicates: Annotated[bool, typer.Option(help="Also look for nearly the same pictures.")] = True,
    out: MetricsOption = None,
    seed: SeedOption = 0,
) -> None:
    """Say what a benchmark measures before any model has looked: simple predictors, training pictures in the test."""
    from iadr1_lib.evaluation import metric_rows
    from iadr1_lib.evaluation import sanity as room

    require_metrics_file(out)
    tables = [_load(folder, layout, root) for folder in data]
    samples = [sample for table in tables for sample in table if sample.split == "test"]
    training = [sample for table in tables for sample in table if sample.split == "train"]
    training += [sample for folder in train or [] for sample in _load(folder)]
    results = room.baselines(samples, training, seed)
    print_table(room.table(results))
    lines = room.readings(results) + (room.duplicate_report(training, samples) if duplicates else [])
    print(*lines, sep="\n")
    if out:
        hashed = [path for named, table in zip(data, tables, strict=True) for path in _hashed(named, table)]
        settings = {"data": [str(folder) for folder in data], "train": [str(folder) for folder in train or []]}
        record = {"rows": metric_rows(results, "sanity"), "provenance": stamp(settings, seed, hashed)}
        print(f"metrics in {write_json(out, record)}")


@commands.command()
def score(
    predictions: Annotated[Path, typer.Option(help="JSON Lines that an evaluation wrote.")],
    parser: Annotated[str, typer.Option(help="How answers are read: fair, strict, ..., or all of them.")] = "fair",
    out: MetricsOption = None,
    seed: SeedOption = 0,
) -> None:
    """Score saved answers again, without a model: metrics, P(Yes), agreement of reasoning and tags."""
    from iadr1_lib import evaluation as room

    if parser not in (*room.PARSERS, "all"):
        raise WrongUse(f"unknown parser {parser}: choose from {', '.join(room.PARSERS)}, all")
    require_metrics_file(out)
    table = room.read_predictions(predictions)
    protocol = room.require_one_protocol({str(predictions): table})
    scores = {name: room.score(table, name, seed) for name in (room.PARSERS if parser == "all" else [parser])}
    rows = [
        row
        for name, scored in scores.items()
        for part in (scored, room.agreement(table, name, seed))
        for row in room.metric_rows(part, name)
    ]
    rows += room.metric_rows(room.ranking(table, seed), "p_yes")
    if parser == "all":
        print_table(room.parser_table(table).round(1).reset_index())
    else:
        print_table(_score_table(scores[parser]))
    _print_oddities(next(iter(scores.values())))
    if odd := room.unknown_types(table):
        print(f"types that the vocabulary lacks count only on an exact match: {', '.join(odd)}")
    print(f"{len(table)} answers, protocol {protocol}")
    if out:
        digest = hashlib.sha256(predictions.read_bytes()).hexdigest()
        settings = {"predictions": str(predictions), "sha256": digest, "parser": parser, "protocol": protocol}
        print(f"metrics in {write_json(out, {'rows': rows, 'provenance': stamp(settings, seed, [])})}")
