"""The command `iadr1`. Each command leaves the work to a room of the library and imports it when called.

Exit status: 0 done, 1 failed, 2 wrong use, 130 stopped by the user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from iadr1_lib.protocols import COURSE
from iadr1_lib.runs import Run, UserError, WrongUse, project_root, raise_if_full, read_json, stamp, write_json

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from iadr1_lib import benchmarks
    from iadr1_lib.benchmarks import Sample
    from iadr1_lib.planning import Plan
    from iadr1_lib.protocols import Protocol
    from iadr1_lib.speed import Speed
    from iadr1_lib.teachers import Teacher

FAILED, WRONG_USE, STOPPED = 1, 2, 130
REPORTED = (
    "balanced_accuracy",
    "accuracy_normal",
    "accuracy_defective",
    "share_unparsed",
    "location",
    "type",
)


class PoliteGroup(typer.core.TyperGroup):
    """Turns the errors a user can mend into one line on stderr and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            try:
                raise_if_full(error, Path(error.filename or "."))
            except UserError as full:
                raise _complain(full, FAILED) from error
            if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)):
                where = error.filename or "a file"
                raise _complain(f"cannot write {where} ({error.strerror}): name another folder", FAILED) from error
            raise
        except UserError as error:
            raise _complain(error, WRONG_USE if isinstance(error, WrongUse) else FAILED) from error
        except KeyboardInterrupt as error:
            raise _complain("stopped; run the same command to go on", STOPPED) from error


def _complain(message: object, status: int) -> typer.Exit:
    typer.echo(f"iadr1: {message}", err=True)
    return typer.Exit(status)


app = typer.Typer(
    cls=PoliteGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="IAD-R1 on your own machine: run the course, train a stage, judge pictures.",
)


class ReferenceKind(StrEnum):
    """Which normal picture stands before the one in question: a similar one, or one drawn by the seed."""

    SIMILAR = "similar"
    RANDOM = "random"


class Stage(StrEnum):
    """The two stages, and the control: PA-SFT continued instead of SC-GRPO."""

    PA_SFT = "pa-sft"
    SC_GRPO = "sc-grpo"
    CONTROL = "control"


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


ProfileOption = Annotated[str, typer.Option(help="Size of the course: a file in data/profiles/.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn or sampled.")]
PromptOption = Annotated[Prompt, typer.Option(help="yes-no is the fair way to ask an untrained model.")]
ModelOption = Annotated[Path, typer.Option(help="Model folder, such as runs/mini-s0/sc_grpo/model.")]
FolderOrNameOption = Annotated[
    str,  # a path would lose a slash of an address
    typer.Option(help="Model folder, or a model behind an API: gpt-4.1, claude-sonnet-4, openai:NAME@http://host/v1."),
]
# How a model behind an API is asked; for evaluate and expert-ad alike.
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="API: requests under way at the same time.")]
PaceOption = Annotated[float | None, typer.Option(help="API: requests a minute at most, retries included.")]
CostCapOption = Annotated[float | None, typer.Option(min=0, help="API: US dollars to spend at most.")]
RepliesOption = Annotated[Path | None, typer.Option(help="API: folder that keeps replies, so that none is paid twice.")]
KeyVariableOption = Annotated[
    str | None, typer.Option(help="API: environment variable with the key, where it is not the provider's usual one.")
]


# --------------------------------------------------------------------------------------------- the course


@app.command()
def run(
    profile: ProfileOption = "mini",
    only: Annotated[str | None, typer.Option(help="Notebooks by number, such as 04,07.")] = None,
    seed: SeedOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Run and train again what is up to date.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the notebooks print.")] = False,
) -> None:
    """Execute the course's notebooks in order; skips what is up to date, goes on where it was stopped."""
    from iadr1_lib import batch

    chosen = Run(profile, seed)
    if "data" in chosen.profile.sections:
        raise WrongUse(f"the notebooks draw their pictures, profile {profile} does not: train by command (MODELS.md)")
    outcomes = batch.run_notebooks(chosen, only, force, verbose, say=lambda line: print(line, flush=True))
    console = _console()
    console.print(batch.outcome_table(outcomes))
    console.print(f"results in {chosen.folder}")
    if any(outcome.status in (batch.FAILED, batch.NOT_RUN) for outcome in outcomes):
        raise typer.Exit(FAILED)


@app.command()
def train(
    stage: Annotated[Stage, typer.Option(help="pa-sft, or sc-grpo (which needs pa-sft).")],
    profile: ProfileOption = "mini",
    seed: SeedOption = 0,
    model: Annotated[str | None, typer.Option(help="In place of the profile's: short name, hub id or folder.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="single, or a file in data/accelerate/: ddp, zero3, fsdp2.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="In place of the profile's.")] = None,
    vllm: Annotated[str | None, typer.Option(help="Rollouts by vLLM: off, server or colocate.")] = None,
    vllm_url: Annotated[str | None, typer.Option(help="Where the vLLM server listens.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Run folder, in place of the profile's and seed's own.")] = None,
) -> None:
    """Train one stage in the run folder; a finished stage whose inputs have not changed is used again."""
    from iadr1_lib import course, engines

    chosen = Run(profile, seed, folder)
    if model and folder is None:
        chosen = chosen.with_model(model)
    elif model:
        chosen.profile.sections["model"]["name"] = model
    given: dict[str, Any] = {"config": engine, "processes": processes, "vllm": vllm, "vllm_url": vllm_url}
    changed = replace(
        course.engine_settings(chosen), **{key: value for key, value in given.items() if value is not None}
    )
    if changed.config != engines.SINGLE:
        engines.config_file(changed.config)
    if changed.config == engines.SINGLE and changed.processes > 1:
        raise WrongUse(f"engine single is one process, not {changed.processes}: add --engine ddp, zero3 or fsdp2")
    if changed.vllm not in ("off", "server", "colocate"):
        raise WrongUse(f"unknown --vllm {changed.vllm}: choose off, server or colocate")
    made = course.train_stage(chosen, stage.value.replace("-", "_"), changed)
    if not engines.is_launched():
        print(f"{stage.value} is in {made}")


@app.command()
def ablate(
    study: Annotated[str, typer.Argument(help="What to vary: rewards, reasoning, grid or data.")],
    profile: ProfileOption = "mini",
    seeds: Annotated[str, typer.Option(help="Seeds of course runs that have PA-SFT, such as 0,1,2.")] = "0,1,2",
    out: Annotated[
        Path | None, typer.Option(help="Metrics file to write, where notebook 09 would not look for it.")
    ] = None,
) -> None:
    """Compare variants of a stage with each seed's PA-SFT; what is finished is used again."""
    from iadr1_lib import ablations

    ablations.study_named(study)
    if not all(seed.strip().isdigit() for seed in seeds.split(",")):
        raise WrongUse(f"--seeds {seeds} is no list of numbers: write it as 0,1,2")
    chosen = [Run(profile, int(seed)) for seed in seeds.split(",")]
    found = ablations.run_study(study, chosen, say=lambda line: print(line, flush=True))
    _print_table(ablations.table(found["rows"]))
    print(f"metrics in {write_json(out or ablations.own_results(study, profile), found)}")


class TeacherKind(StrEnum):
    """Who writes the reasoning: rules from measurements, a model behind an API, or a recording of its replies."""

    RULE = "rule"
    API = "api"
    REPLAY = "replay"


class Provider(StrEnum):
    """Whose protocol an API speaks; vLLM and many others speak OpenAI's."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"


@app.command("expert-ad")
def expert_ad(
    data: Annotated[
        list[Path], typer.Option(help="Data set with masks: root, one category, or index file. Repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; a stopped run goes on there.")],
    teacher: Annotated[TeacherKind, typer.Option(help="Who writes the reasoning.")] = TeacherKind.RULE,
    test: Annotated[list[Path] | None, typer.Option(help="Test set whose pictures must stay out. Repeatable.")] = None,
    pa_sft: Annotated[int | None, typer.Option(min=2, help="Pictures with reasoning; with --sc-grpo.")] = None,
    sc_grpo: Annotated[int | None, typer.Option(min=2, help="Pictures with labels only; with --pa-sft.")] = None,
    grid: Annotated[int, typer.Option(min=1, max=5, help="Rows and columns of the grid of places.")] = 3,
    tries: Annotated[int, typer.Option(min=1, help="Drafts per picture.")] = 3,
    layout: Annotated[str | None, typer.Option(help="Such as mvtec or visa; by default found by looking.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that measure pictures.")] = 2,
    parquet: Annotated[bool, typer.Option(help="Also write Parquet files with the pictures inside.")] = True,
    replay: Annotated[Path | None, typer.Option(help="Recorded replies, for --teacher replay.")] = None,
    record: Annotated[Path | None, typer.Option(help="File to record the teacher's replies in.")] = None,
    provider: Annotated[Provider, typer.Option(help="For --teacher api.")] = Provider.ANTHROPIC,
    model: Annotated[str | None, typer.Option(help="For --teacher api: the model's name at its provider.")] = None,
    base_url: Annotated[str | None, typer.Option(help="For --teacher api: another server, such as vLLM's.")] = None,
    concurrency: ConcurrencyOption = 4,
    requests_per_minute: PaceOption = None,
    cost_cap: CostCapOption = None,
    replies: RepliesOption = None,
    key_variable: KeyVariableOption = None,
    seed: SeedOption = 0,
) -> None:
    """Build Expert-AD from pictures with masks: worked answers for PA-SFT, questions for SC-GRPO, report and card."""
    from iadr1_lib import benchmarks, data_card, expert_ad, sources
    from iadr1_lib.records import labelled

    if (pa_sft is None) != (sc_grpo is None):
        raise WrongUse("--pa-sft and --sc-grpo go together: give both or neither")
    manner = {"concurrency": concurrency, "requests_per_minute": requests_per_minute, "key_variable": key_variable}
    chosen = _teacher(
        teacher,
        seed,
        replay,
        model,
        replies or out / "replies",
        cost_cap,
        provider=provider,
        base_url=base_url,
        **manner,
    )
    writer = chosen
    if record is not None:
        from iadr1_lib.api_teachers import record_to

        writer = record_to(record, chosen)
    tables = [sources.load_samples(folder, layout, strict=False) for folder in data]
    samples = [sample for table in tables for sample in table]
    tests = [sample for folder in test or [] for sample in sources.load_samples(folder)]
    sizes = (pa_sft, sc_grpo) if pa_sft and sc_grpo else None
    passed_over = [problem for table in tables for problem in table.passed_over]
    drawn = expert_ad.draw_sets(samples, seed, sizes, tests, workers)
    drawn.turned_away.extend({"image": p.image, "label": None, "reason": p.kind} for p in passed_over)
    if (estimate := getattr(chosen, "estimate", None)) is not None:
        print(f"{chosen.name}, at most, if no reply were kept: {estimate(drawn.pa_sft, tries)}", flush=True)
    with _progress() as progress:
        task = progress.add_task("records", total=len(drawn.pa_sft))
        built = expert_ad.build_records(
            drawn.pa_sft,
            writer,
            tries=tries,
            grid=grid,
            workers=workers,
            journal=out / "journal.jsonl",
            said=lambda done: progress.advance(task, done),
        )
    questions = [labelled(sample, grid) for sample in drawn.sc_grpo]
    made_with = {"seed": seed, "grid": grid, "tries": tries, "version": version("iadr1-lib")}
    made_with |= {"data": [str(folder) for folder in data], "kept out": [str(folder) for folder in test or []]}
    report = expert_ad.export(built, questions, out, seed=seed, drawn=drawn, made_with=made_with)
    if parquet:
        data_card.write_parquet(built.records, out / "pa_sft.parquet")
        data_card.write_parquet(questions, out / "sc_grpo.parquet")
    data_card.write_card(out, report)
    for name in ("label", "type", "category"):
        _print_table(expert_ad.tally_table(report, name))
    _print_table(expert_ad.rejections_table(report))
    print(f"{report['records']} records, {report['rejected']} rejected, {len(questions)} questions: all in {out}")
    if unknown := _unmapped(samples):
        print(f"types that the table does not know count as other: {unknown}")
    if turned_away := report["turned away"]:
        print(f"turned away (rejected.jsonl): {', '.join(f'{reason} {n}' for reason, n in turned_away.items())}")
    if passed_over:
        _print_table(benchmarks.health_table(passed_over))
    if in_tests := sum(sample.split == "test" for sample in (*drawn.pa_sft, *drawn.sc_grpo)):
        print(f"{in_tests} pictures are of their data set's own test split: do not evaluate on it")
    if (remote := getattr(chosen, "remote", None)) is not None:
        print(remote.spent)
    if not built.records:
        raise UserError(f"no record passed the rules: see {out / 'rejected.jsonl'}")


def _teacher(
    kind: TeacherKind,
    seed: int,
    replay: Path | None,
    model: str | None,
    replies: Path,
    cost_cap: float | None,
    *,
    provider: Provider,
    **manner: Any,
) -> Teacher:
    """The teacher; `manner` are settings of its endpoint."""
    if kind is TeacherKind.RULE:
        from iadr1_lib.teachers import RuleTeacher

        return RuleTeacher(seed)
    from iadr1_lib.api_teachers import ApiTeacher, ReplayTeacher

    if kind is TeacherKind.REPLAY:
        if replay is None:
            raise WrongUse("--teacher replay needs --replay FILE with recorded replies")
        return ReplayTeacher(replay)
    if model is None:
        raise WrongUse("--teacher api needs --model, the model's name at its provider")
    from iadr1_lib.remote import Endpoint, Remote

    return ApiTeacher(Remote(Endpoint(provider.value, model, **manner), replies, cost_cap))


def _unmapped(samples: list[Sample]) -> str:
    from iadr1_lib.type_names import unmapped

    return ", ".join(f"{name} ({data_set}, {count})" for (data_set, name), count in unmapped(samples).items())


def _progress() -> Progress:
    """A progress bar on a terminal, nothing in a log."""
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)


@app.command("build-base")
def build_base(
    out: Annotated[Path | None, typer.Option(help="Folder to write; default data/mini_base.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Make the mini model's base weights from nothing (under an hour on two cores)."""
    from iadr1_lib import base

    print(f"base weights are in {base.build_base(out or project_root() / 'data' / 'mini_base', seed)}")


@app.command()
def doctor() -> None:
    """Check what the course needs: one OK or FAIL line each, with the mend."""
    from iadr1_lib.doctor import examine

    failed = 0
    for check in examine():
        print(check, flush=True)
        failed += not check.ok
    print(f"{failed} to mend" if failed else "all is well: iadr1 run --profile mini")
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, such as runs/mini-s*.")] = None,
    out: Annotated[Path | None, typer.Option(help="Metrics file to write: rows and provenance.")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML page to write: Tables 1 to 5, figures, answers.")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Renew README.md from the shipped results.")] = False,
) -> None:
    """Put runs of several seeds together, beside the paper; without a run, the results that the project ships."""
    from iadr1_lib import page as html
    from iadr1_lib import paper_tables
    from iadr1_lib import report as room

    found = room.pooled_metrics(runs) if runs else room.shipped_metrics()
    for table in room.tables(found["rows"]):
        _print_table(table)
    agreement = paper_tables.agreement(paper_tables.measured(found))
    _print_table(agreement[["claim", "where", "paper", "ours", "seeds", "verdict"]])
    print(paper_tables.in_short(agreement))
    if page:
        print(f"page in {html.build_page(runs or [], page)}")
    if out:
        print(f"metrics in {write_json(out, found)}")
    if readme:
        print(f"results in {room.write_readme()}")


@app.command()
def plan(
    profile: ProfileOption = "gpu",
    model: Annotated[str | None, typer.Option(help="Short name, hub id or folder; by default the profile's.")] = None,
    images: Annotated[int, typer.Option(min=1, max=2, help="Pictures per prompt; 2 with a reference.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what training a model needs before anything is loaded: parameters, tokens, steps, memory, what to lower."""
    import dataclasses
    import json

    from iadr1_lib import planning
    from iadr1_lib.runs import load_profile

    chosen = load_profile(profile)
    settings = dataclasses.replace(planning.settings_of(chosen), images=images)
    found = planning.plan(model or str(chosen.section("model").get("name", "mini")), settings)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    for table in _plan_tables(found):
        _console().print(table)
    if found.difference:
        print(found.difference)
    for number, told in enumerate(found.advice, 1):
        print(f"it will not fit; lower {told}" if number == 1 else f"  {number}. {told}")


def _plan_tables(found: Plan) -> list[Table]:
    facts = Table("what", "number", title=found.model)
    for part, count in found.parameters.items():
        facts.add_row(f"parameters, {part}", f"{count:,}")
    facts.add_row("parameters, all", f"{sum(found.parameters.values()):,}")
    height, width = found.tokens.worst_shape
    facts.add_row("tokens of a square picture", f"{found.tokens.square:,}")
    facts.add_row(f"tokens at worst ({height} x {width} pixels)", f"{found.tokens.worst:,}")
    stages = Table("per GPU, estimated", *(stage.stage.replace("_", "-") for stage in found.stages))
    for name, values in (
        ("trained parameters", [f"{stage.trainable:,}" for stage in found.stages]),
        ("longest sequence (tokens)", [f"{stage.sequence:,}" for stage in found.stages]),
        ("steps", [f"{stage.steps:,}" for stage in found.stages]),
    ):
        stages.add_row(name, *values)
    for field in ("weights", "gradients", "optimiser", "gathered", "activations", "logits", "reference", "generation"):
        stages.add_row(f"{field} (GiB)", *(f"{getattr(stage.memory, field):.2f}" for stage in found.stages))
    stages.add_row("peak (GiB)", *(f"{stage.memory.total:.1f}" for stage in found.stages))
    fits = ("yes" if stage.fits else "no" for stage in found.stages)
    stages.add_row(f"fits {found.settings.gpu_gib:g} GiB, a tenth left free", *fits)
    return [facts, stages]


@app.command()
def fetch(
    profile: ProfileOption = "gpu",
    model: Annotated[str | None, typer.Option(help="Short name or hub id; by default the profile's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")] = False,
) -> None:
    """Fetch a profile's model and the paper's data sets, so that everything later runs without a network."""
    from iadr1_lib import fetching
    from iadr1_lib.runs import load_profile

    wanted = fetching.items(load_profile(profile), model)
    free = fetching.free_bytes()
    table = Table("what", "kind", "commit", "size (GB)", "to fetch (GB)")
    for item in wanted:
        sizes = ("unknown, no network" if n is None else f"{n / 1e9:.2f}" for n in (item.size, item.missing))
        table.add_row(item.name, item.kind, (item.commit or "-")[:12], *sizes)
    _console().print(table)
    print(f"{free / 1e9:.1f} GB are free")
    if dry_run:
        return
    fetching.fetch(wanted)


@app.command("check-vllm")
def check_vllm(
    data: Annotated[Path, typer.Option(help="Pictures to ask about: a data set's folder.")],
    model: Annotated[str, typer.Option(help="Short name, hub id or folder.")] = "llava-onevision-0.5b",
    pictures: Annotated[int, typer.Option(min=1, help="How many to compare on.")] = 16,
) -> None:
    """Compare vLLM's tokens and log-probabilities with transformers', before a training may use it."""
    from iadr1_lib import benchmarks, engines, sources

    engines.require_vllm()
    from iadr1_lib import models, vllm_check

    folder = models.model_folder(models.ModelSettings(model))
    shown = [benchmarks.open_image(sample.image) for sample in sources.load_samples(data)[:pictures]]
    questions = [[picture] for picture in shown] + [[shown[0], picture] for picture in shown[: pictures // 4]]
    found = vllm_check.compare(folder, questions)
    print(f"the same prompt tokens: {found.same_prompt_tokens} of {found.prompts}")
    print(f"log-probabilities differ by {found.mean_difference:.4f} on average, {found.largest_difference:.4f} at most")
    print(f"noted in {vllm_check.record(model, found)}")
    if not found.passed:
        raise UserError(f"vLLM and transformers disagree on {model}: leave engine.vllm off")


# --------------------------------------------------------------------------------------------- real input


@app.command()
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
    from iadr1_lib import api_models, benchmarks, scoring
    from iadr1_lib.references import references

    asked = _protocol(Path(model), protocol, kind) if protocol else None
    parser = parser or (asked.parser if asked and not answer_only else "fair")
    if parser not in scoring.PARSERS:
        raise WrongUse(f"unknown parser {parser}: choose from {', '.join(scoring.PARSERS)}")
    table = _load(data, layout, root, why=f"iadr1 evaluate --model {model}")
    samples = [sample for sample in table if sample.split == "test"]
    if one_sided := benchmarks.missing_label(samples, data):
        if not one_label:
            raise UserError(f"{one_sided} Put some there, or give --one-label to have that.")
        print(one_sided)
    manner = {"concurrency": concurrency, "requests_per_minute": requests_per_minute, "key_variable": key_variable}
    endpoint = api_models.endpoint_named(model, logprobs, max_tokens=max_tokens, **manner)
    if endpoint and (protocol or answer_only or profile_speed):
        raise WrongUse(
            "--protocol, --answer-only and --profile-speed are for model folders, not for models behind an API"
        )
    mode = (prompt or (Prompt.YES_NO if endpoint else Prompt.BARE)).value
    if profile_speed:
        from iadr1_lib import speed

        lengths = _lengths(batch_size, answer_only, asked)
        _print_table(_speed_table(speed.measure(Path(model), samples, prompt=asked or mode, **lengths)))
        return
    if shots and endpoint:
        raise WrongUse("--shots 1 is for model folders: models behind an API are shown one picture")
    beside: dict[str, Any] = {}
    if shots:
        pool = [*table, *(_load(train) if train else [])]
        how: dict[str, Any] = {"kind": reference_kind.value, "seed": seed, "templates": table.templates}
        beside["references"] = references(samples, pool, **how)
    out = out or Path(f"evaluation_{data.resolve().name}.json")
    predictions = out.with_suffix(".predictions.jsonl")
    if out.exists():
        predictions.unlink(missing_ok=True)
        out.unlink()
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
    _console().print(_score_table(scores))
    if table.passed_over:
        _print_table(benchmarks.health_table(table.passed_over).drop(columns="meaning"))
    if refused := int(scores.loc[scores["metric"] == "refused", "value"].sum()):
        print(f"{refused} pictures were refused: they count as not readable")
    print(f"{len(samples)} pictures; metrics in {out}, predictions in {predictions}")


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


@app.command()
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
    _print_table(room.table(found))
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


@app.command()
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
        _print_table(scoring.parser_table(table).round(1).reset_index())
    else:
        _console().print(_score_table(scores[parser]))
    if odd := scoring.unknown_types(table):
        print(f"types that the vocabulary lacks are right only word by word: {', '.join(odd)}")
    print(f"{len(table)} answers, protocol {protocol}")
    if out:
        digest = hashlib.sha256(predictions.read_bytes()).hexdigest()
        said = {"predictions": str(predictions), "sha256": digest, "parser": parser, "protocol": protocol}
        print(f"metrics in {write_json(out, {'rows': rows, 'provenance': stamp(said, seed, [])})}")


@app.command()
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


def _print_table(table: pd.DataFrame) -> None:
    rendered = Table(*table.columns)
    for row in table.astype(str).to_numpy().tolist():
        rendered.add_row(*(cell.replace("[", r"\[") for cell in row))
    _console().print(rendered)


def _console() -> Console:
    """A console that wraps no cell away when the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":  # how an engine starts its processes
    main()
