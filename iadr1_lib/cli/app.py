"""The command `iadr1`. Each command leaves the work to a room of the library and imports it when called.

Exit status: 0 done, 1 failed, 2 wrong use, 130 stopped by the user.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from iadr1_lib.cli.evaluation import commands as evaluation_commands
from iadr1_lib.cli.evaluation import require_metrics_file
from iadr1_lib.cli.options import (
    ConcurrencyOption,
    CostCapOption,
    KeyVariableOption,
    PaceOption,
    ProfileOption,
    RepliesOption,
    SeedOption,
    make_console,
    print_table,
)
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.files import raise_if_full, write_json
from iadr1_lib.runs import Run

if TYPE_CHECKING:
    from iadr1_lib.expert_ad import Teacher
    from iadr1_lib.records import Sample
    from iadr1_lib.training import Plan

FAILED, WRONG_USE, STOPPED = 1, 2, 130
# System errors that another path avoids; anything else is a fault of ours and shows its traceback.
REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}


class PoliteGroup(typer.core.TyperGroup):
    """Turns the errors a user can correct into one line on stderr and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            try:
                raise_if_full(error, Path(error.filename or "."))
            except UserError as full:
                raise _complain(full, FAILED) from error
            if error.errno in REFUSED:
                where = error.filename or "a file"
                raise _complain(f"cannot use {where} ({error.strerror}): name another folder", FAILED) from error
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


class Stage(StrEnum):
    """The two stages, and the control: PA-SFT continued instead of SC-GRPO."""

    PA_SFT = "pa-sft"
    SC_GRPO = "sc-grpo"
    CONTROL = "control"


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
    from iadr1_lib.course import batch

    chosen = Run(profile, seed)
    if "data" in chosen.profile.sections:
        raise WrongUse(f"the notebooks draw their pictures, profile {profile} does not: train by command (MODELS.md)")
    outcomes = batch.run_notebooks(chosen, only, force, verbose, say=lambda line: print(line, flush=True))
    console = make_console()
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
    force: Annotated[bool, typer.Option("--force", help="Train a finished stage again.")] = False,
) -> None:
    """Train one stage in the run folder; a finished stage whose inputs have not changed is used again."""
    from iadr1_lib.course import steps
    from iadr1_lib.training import launch

    chosen = Run(profile, seed, folder)
    if model and folder is None:
        chosen = chosen.with_model(model)
    elif model:
        chosen.profile.sections["model"]["name"] = model
    given: dict[str, Any] = {"config": engine, "processes": processes, "vllm": vllm, "vllm_url": vllm_url}
    changed = replace(
        steps.engine_settings(chosen), **{key: value for key, value in given.items() if value is not None}
    )
    if changed.config != launch.SINGLE:
        launch.config_file(changed.config)
    if changed.config == launch.SINGLE and changed.processes > 1:
        raise WrongUse(f"engine single is one process, not {changed.processes}: add --engine ddp, zero3 or fsdp2")
    if changed.vllm not in ("off", "server", "colocate"):
        raise WrongUse(f"unknown --vllm {changed.vllm}: choose off, server or colocate")
    made = steps.train_stage(chosen, stage.value.replace("-", "_"), changed, force)
    if not launch.is_launched():
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
    from iadr1_lib.course import ablations
    from iadr1_lib.reporting import own_results, study_named, study_table

    study_named(study)
    require_metrics_file(out)
    if not all(seed.strip().isdigit() for seed in seeds.split(",")):
        raise WrongUse(f"--seeds {seeds} is no list of numbers: write it as 0,1,2")
    chosen = [Run(profile, int(seed)) for seed in seeds.split(",")]
    found = ablations.run_study(study, chosen, say=lambda line: print(line, flush=True))
    print_table(study_table(found["rows"]))
    print(f"metrics in {write_json(out or own_results(study, profile), found)}")


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
    from iadr1_lib.data import benchmarks, labelled, sources
    from iadr1_lib.expert_ad import build, card

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
        from iadr1_lib.remote import record_to

        writer = record_to(record, chosen)
    tables = [sources.load_samples(folder, layout, strict=False) for folder in data]
    samples = [sample for table in tables for sample in table]
    tests = [sample for folder in test or [] for sample in sources.load_samples(folder)]
    sizes = (pa_sft, sc_grpo) if pa_sft and sc_grpo else None
    passed_over = [problem for table in tables for problem in table.passed_over]
    drawn = build.draw_sets(samples, seed, sizes, tests, workers)
    drawn.turned_away.extend({"image": p.image, "label": None, "reason": p.kind} for p in passed_over)
    if (estimate := getattr(chosen, "estimate", None)) is not None:
        print(f"{chosen.name}, at most, if no reply were kept: {estimate(drawn.pa_sft, tries)}", flush=True)
    with _progress() as progress:
        task = progress.add_task("records", total=len(drawn.pa_sft))
        built = build.build_records(
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
    if not built.records:
        rejected = build.write_rejected(built, drawn, out)
        print_table(build.rejections_table(build.report_of(built)))
        raise UserError(f"no record passed the rules, and no set was written: see {rejected}")
    report = build.export(built, questions, out, seed=seed, drawn=drawn, made_with=made_with)
    if parquet:
        card.write_parquet(built.records, out / "pa_sft.parquet")
        card.write_parquet(questions, out / "sc_grpo.parquet")
    card.write_card(out, report)
    for name in ("label", "type", "category"):
        print_table(build.tally_table(report, name))
    print_table(build.rejections_table(report))
    print(f"{report['records']} records, {report['rejected']} rejected, {len(questions)} questions: all in {out}")
    if unknown := _unmapped(samples):
        print(f"types that the table does not know count as other: {unknown}")
    if turned_away := report["turned away"]:
        print(f"turned away (rejected.jsonl): {', '.join(f'{reason} {n}' for reason, n in turned_away.items())}")
    if passed_over:
        print_table(benchmarks.health_table(passed_over))
    if in_tests := sum(sample.split == "test" for sample in (*drawn.pa_sft, *drawn.sc_grpo)):
        print(f"{in_tests} pictures are of their data set's own test split: do not evaluate on it")
    if (remote := getattr(chosen, "remote", None)) is not None:
        print(remote.spent)


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
        from iadr1_lib.expert_ad import RuleTeacher

        return RuleTeacher(seed)
    from iadr1_lib.remote import ApiTeacher, ReplayTeacher

    if kind is TeacherKind.REPLAY:
        if replay is None:
            raise WrongUse("--teacher replay needs --replay FILE with recorded replies")
        return ReplayTeacher(replay)
    if model is None:
        raise WrongUse("--teacher api needs --model, the model's name at its provider")
    from iadr1_lib.remote import Endpoint, Remote

    return ApiTeacher(Remote(Endpoint(provider.value, model, **manner), replies, cost_cap))


def _unmapped(samples: list[Sample]) -> str:
    from iadr1_lib.data import unmapped

    return ", ".join(f"{name} ({data_set}, {count})" for (data_set, name), count in unmapped(samples).items())


def _progress() -> Progress:
    """A progress bar on a terminal, nothing in a log."""
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)


@app.command()
def doctor() -> None:
    """Check what the course needs: one OK or FAIL line each, with what to do."""
    from iadr1_lib.course import examine

    failed = 0
    for check in examine():
        print(check, flush=True)
        failed += not check.ok
    print(f"{failed} to correct" if failed else "all is well: iadr1 run --profile mini")
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
    from iadr1_lib.reporting import page as html
    from iadr1_lib.reporting import paper_tables
    from iadr1_lib.reporting import report as room

    require_metrics_file(out)
    found = room.pooled_metrics(runs) if runs else room.shipped_metrics()
    for table in room.tables(found["rows"]):
        print_table(table)
    own: dict[str, Any] | None = {} if runs else None  # the shipped studies are not of these runs
    agreement = paper_tables.agreement(paper_tables.measured(found, found=own))
    print_table(agreement[["claim", "where", "paper", "ours", "seeds", "verdict"]])
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

    from iadr1_lib.runs import load_profile
    from iadr1_lib.training import plan

    chosen = load_profile(profile)
    settings = dataclasses.replace(plan.settings_of(chosen), images=images)
    found = plan.plan(model or str(chosen.section("model").get("name", "mini")), settings)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    for table in _plan_tables(found):
        make_console().print(table)
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
    from iadr1_lib.models import fetching
    from iadr1_lib.runs import load_profile

    wanted = fetching.items(load_profile(profile), model)
    free = fetching.free_bytes()
    table = Table("what", "kind", "commit", "size (GB)", "to fetch (GB)")
    for item in wanted:
        sizes = ("unknown, no network" if n is None else f"{n / 1e9:.2f}" for n in (item.size, item.missing))
        table.add_row(item.name, item.kind, (item.commit or "-")[:12], *sizes)
    make_console().print(table)
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
    from iadr1_lib.data import benchmarks, sources
    from iadr1_lib.training import launch

    launch.require_vllm()
    from iadr1_lib.evaluation import vllm_check
    from iadr1_lib.models import loading

    folder = loading.model_folder(loading.ModelSettings(model))
    shown = [benchmarks.open_image(sample.image) for sample in sources.load_samples(data)[:pictures]]
    questions = [[picture] for picture in shown] + [[shown[0], picture] for picture in shown[: pictures // 4]]
    found = vllm_check.compare(folder, questions)
    print(f"the same prompt tokens: {found.same_prompt_tokens} of {found.prompts}")
    print(f"log-probabilities differ by {found.mean_difference:.4f} on average, {found.largest_difference:.4f} at most")
    print(f"noted in {vllm_check.record(model, found)}")
    if not found.passed:
        raise UserError(f"vLLM and transformers disagree on {model}: leave engine.vllm off")


app.add_typer(evaluation_commands)


def main() -> None:
    """Entry point of the console command."""
    app()
