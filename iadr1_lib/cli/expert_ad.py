"""The command that builds Expert-AD from pictures with masks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from iadr1_lib.cli.options import ApiOptions, LayoutOption, SeedOption, option_groups, print_table
from iadr1_lib.errors import UserError, WrongUse

if TYPE_CHECKING:
    from iadr1_lib.data import Problem
    from iadr1_lib.expert_ad import Budget, Teacher
    from iadr1_lib.records import Sample

commands = typer.Typer()


class TeacherKind(StrEnum):
    """Who writes the reasoning: rules from measurements, a model behind an API, or a recording of its replies."""

    RULE = "rule"
    API = "api"
    REPLAY = "replay"


class Provider(StrEnum):
    """Whose protocol an API speaks; vLLM and many others speak OpenAI's."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"


@dataclass
class TeacherOptions:
    """Who writes the reasoning, and how a teacher behind an API is reached."""

    teacher: Annotated[TeacherKind, typer.Option(help="Who writes the reasoning.")] = TeacherKind.RULE
    tries: Annotated[int, typer.Option(min=1, help="Drafts per picture.")] = 3
    replay: Annotated[Path | None, typer.Option(help="Recorded replies, for --teacher replay.")] = None
    record: Annotated[Path | None, typer.Option(help="File to record the teacher's replies in.")] = None
    provider: Annotated[Provider, typer.Option(help="For --teacher api.")] = Provider.ANTHROPIC
    model: Annotated[str | None, typer.Option(help="For --teacher api: the model's name at its provider.")] = None
    student: Annotated[
        str | None, typer.Option(help="Model that is to learn (fetched, if of the hub): records fit its tokens.")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(min=16, help="For --student: longest answer; by default 512, the mini VLM's 56.")
    ] = None
    base_url: Annotated[str | None, typer.Option(help="For --teacher api: another server, such as vLLM's.")] = None


@commands.command("expert-ad")
@option_groups
def expert_ad(
    data: Annotated[
        list[Path], typer.Option(help="Data set with masks: root, one category, or index file. Repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; a stopped run goes on there.")],
    writer: TeacherOptions,
    api: ApiOptions,
    test: Annotated[list[Path] | None, typer.Option(help="Test set whose pictures must stay out. Repeatable.")] = None,
    pa_sft: Annotated[int | None, typer.Option(min=2, help="Pictures with reasoning; with --sc-grpo.")] = None,
    sc_grpo: Annotated[int | None, typer.Option(min=2, help="Pictures with labels only; with --pa-sft.")] = None,
    grid: Annotated[int, typer.Option(min=1, max=5, help="Rows and columns of the grid of places.")] = 3,
    layout: LayoutOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that measure pictures.")] = 2,
    parquet: Annotated[bool, typer.Option(help="Also write Parquet files with the pictures inside.")] = True,
    seed: SeedOption = 0,
) -> None:
    """Build Expert-AD from pictures with masks: worked answers for PA-SFT, questions for SC-GRPO, report and card."""
    from iadr1_lib.data import labelled, load_samples
    from iadr1_lib.expert_ad import build, card, teacher_within

    if (pa_sft is None) != (sc_grpo is None):
        raise WrongUse("--pa-sft and --sc-grpo go together: give both or neither")
    teacher, budget = _teacher(writer, api, out, seed), _budget(writer)
    tables = [load_samples(folder, layout, strict=False) for folder in data]
    samples = [sample for table in tables for sample in table]
    passed_over = [problem for table in tables for problem in table.passed_over]
    tests = [sample for folder in test or [] for sample in load_samples(folder)]
    sizes = (pa_sft, sc_grpo) if pa_sft and sc_grpo else None
    drawn = build.draw_sets(samples, seed, sizes, tests, workers)
    if budget and writer.teacher is TeacherKind.RULE:
        teacher = teacher_within(drawn.pa_sft, seed, budget)
    drawn.turned_away.extend({"image": p.image, "label": None, "reason": p.kind} for p in passed_over)
    if (estimate := getattr(teacher, "estimate", None)) is not None:
        print(f"{teacher.name}, at most, without kept replies: {estimate(drawn.pa_sft, writer.tries)}", flush=True)
    with _progress() as progress:
        task = progress.add_task("records", total=len(drawn.pa_sft))
        built = build.build_records(
            drawn.pa_sft,
            _recorded(teacher, writer.record),
            tries=writer.tries,
            grid=grid,
            repeats=getattr(teacher, "short", False),
            budget=budget,
            workers=workers,
            journal=out / "journal.jsonl",
            progress=lambda done: progress.advance(task, done),
        )
    if not built.records:
        rejected = build.write_rejected(built, drawn, out)
        print_table(build.rejections_table(build.report_of(built)))
        raise UserError(f"no record passed the rules, and no set was written: see {rejected}")
    questions = [labelled(sample, grid) for sample in drawn.sc_grpo]
    settings = {"seed": seed, "grid": grid, "tries": writer.tries, "version": version("iadr1-lib")}
    settings |= {"data": [str(folder) for folder in data], "kept out": [str(folder) for folder in test or []]}
    report = build.export(built, questions, out, seed=seed, drawn=drawn, made_with=settings)
    if parquet:
        card.write_parquet(built.records, out / "pa_sft.parquet")
        card.write_parquet(questions, out / "sc_grpo.parquet")
    card.write_card(out, report)
    _print_report(report, len(questions), out, samples, passed_over)
    if in_tests := sum(sample.split == "test" for sample in (*drawn.pa_sft, *drawn.sc_grpo)):
        print(f"{in_tests} pictures are of their data set's own test split: do not evaluate on it")
    if (remote := getattr(teacher, "remote", None)) is not None:
        print(remote.spent)


def _budget(writer: TeacherOptions) -> Budget | None:
    """How long an answer may be for the model that is to learn; None where none is named."""
    if writer.student is None:
        if writer.max_tokens:
            raise WrongUse("--max-tokens counts tokens of a model: name it with --student")
        return None
    from iadr1_lib.evaluation import protocols
    from iadr1_lib.expert_ad import Budget
    from iadr1_lib.models import ModelSettings, load_processor, model_config, model_folder
    from iadr1_lib.runs import load_profile

    folder = model_folder(ModelSettings(writer.student))
    profile = load_profile("mini" if protocols.family_of(model_config(folder)) == "mini" else "gpu")
    longest = writer.max_tokens or int(profile.section("sc_grpo")["max_completion_length"])
    return Budget.of(load_processor(folder).tokenizer, longest)


def _teacher(writer: TeacherOptions, api: ApiOptions, out: Path, seed: int) -> Teacher:
    """The teacher that the options name; replies of an API are kept below `out` by default."""
    if writer.teacher is TeacherKind.RULE:
        from iadr1_lib.expert_ad import RuleTeacher

        return RuleTeacher(seed)
    from iadr1_lib.remote import ApiTeacher, Endpoint, Remote, ReplayTeacher

    if writer.teacher is TeacherKind.REPLAY:
        if writer.replay is None:
            raise WrongUse("--teacher replay needs --replay FILE with recorded replies")
        return ReplayTeacher(writer.replay)
    if writer.model is None:
        raise WrongUse("--teacher api needs --model, the model's name at its provider")
    endpoint = Endpoint(writer.provider.value, writer.model, base_url=writer.base_url, **api.endpoint())
    return ApiTeacher(Remote(endpoint, api.replies or out / "replies", api.cost_cap))


def _recorded(teacher: Teacher, record: Path | None) -> Teacher:
    """The teacher, whose replies are written down as well where a file is named for them."""
    if record is None:
        return teacher
    from iadr1_lib.remote import RecordingTeacher

    return RecordingTeacher(record, teacher)


def _print_report(
    report: dict[str, Any], questions: int, out: Path, samples: list[Sample], passed_over: list[Problem]
) -> None:
    """Print what was built, and each kind of picture or record that was left out."""
    from iadr1_lib.data import health_table, unmapped
    from iadr1_lib.expert_ad import build

    for name in ("label", "type", "category"):
        print_table(build.tally_table(report, name))
    print_table(build.rejections_table(report))
    print(f"{report['records']} records, {report['rejected']} rejected, {questions} questions: all in {out}")
    if unknown := unmapped(samples):
        names = ", ".join(f"{name} ({data_set}, {count})" for (data_set, name), count in unknown.items())
        print(f"types that the table does not know count as other: {names}")
    if turned_away := report["turned away"]:
        print(f"turned away (rejected.jsonl): {', '.join(f'{reason} {n}' for reason, n in turned_away.items())}")
    if passed_over:
        print_table(health_table(passed_over))


def _progress() -> Progress:
    """A progress bar on a terminal, nothing in a log."""
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)
