"""Commands around runs of the course: run, train, ablate, report, doctor."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from iadr1_lib.cli.options import (
    MetricsOption,
    ProfileOption,
    SeedOption,
    make_console,
    print_table,
    require_metrics_file,
)
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.files import write_json
from iadr1_lib.runs import Run

commands = typer.Typer()


class Stage(StrEnum):
    """The two stages, and the control: PA-SFT continued instead of SC-GRPO."""

    PA_SFT = "pa-sft"
    SC_GRPO = "sc-grpo"
    CONTROL = "control"


@commands.command()
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
        raise WrongUse(
            f"the notebooks draw their pictures, profile {profile} does not: train by command (docs/models.md)"
        )
    outcomes = batch.run_notebooks(chosen, only, force, verbose, say=lambda line: print(line, flush=True))
    console = make_console()
    console.print(batch.outcome_table(outcomes))
    console.print(f"results in {chosen.folder}")
    if any(outcome.status in (batch.FAILED, batch.NOT_RUN) for outcome in outcomes):
        raise typer.Exit(1)


@commands.command()
def train(
    stage: Annotated[Stage, typer.Option(help="pa-sft, or sc-grpo (which needs pa-sft).")],
    profile: ProfileOption = "mini",
    seed: SeedOption = 0,
    model: Annotated[str | None, typer.Option(help="In place of the profile's: short name, hub id or folder.")] = None,
    engine: Annotated[str | None, typer.Option(help="single, or of data/accelerate/: ddp, zero3, fsdp2.")] = None,
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
    changed = replace(steps.engine_settings(chosen), **{key: value for key, value in given.items() if value})
    if changed.config != launch.SINGLE:
        launch.config_file(changed.config)
    elif changed.processes > 1:
        raise WrongUse(f"engine single is one process, not {changed.processes}: add --engine ddp, zero3 or fsdp2")
    if changed.vllm not in ("off", "server", "colocate"):
        raise WrongUse(f"unknown --vllm {changed.vllm}: choose off, server or colocate")
    model_folder = steps.train_stage(chosen, stage.value.replace("-", "_"), changed, force)
    if not launch.is_launched():
        print(f"{stage.value} is in {model_folder}")


@commands.command()
def ablate(
    study: Annotated[str, typer.Argument(help="What to vary: rewards, reasoning, grid or data.")],
    profile: ProfileOption = "mini",
    seeds: Annotated[str, typer.Option(help="Seeds of course runs that have PA-SFT, such as 0,1,2.")] = "0,1,2",
    out: MetricsOption = None,
) -> None:
    """Compare variants of a stage with each seed's PA-SFT; what is finished is used again."""
    from iadr1_lib.course import ablations
    from iadr1_lib.reporting import own_results, study_named, study_table

    study_named(study)
    require_metrics_file(out)
    if not all(seed.strip().isdigit() for seed in seeds.split(",")):
        raise WrongUse(f"--seeds {seeds} is no list of numbers: write it as 0,1,2")
    runs = [Run(profile, int(seed)) for seed in seeds.split(",")]
    results = ablations.run_study(study, runs, say=lambda line: print(line, flush=True))
    print_table(study_table(results["rows"]))
    print(f"metrics in {write_json(out or own_results(study, profile), results)}")


@commands.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, such as runs/mini-s*.")] = None,
    out: MetricsOption = None,
    page: Annotated[Path | None, typer.Option(help="HTML page of one run; by default its report.html.")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Renew README.md and docs/results.md.")] = False,
) -> None:
    """Put runs of several seeds together, beside the paper; without a run, the results that the project ships."""
    from iadr1_lib import reporting

    require_metrics_file(out)
    runs = runs or []
    if page and len(runs) != 1:
        raise WrongUse("--page writes the page of one run: name its folder, such as runs/mini-s0")
    metrics = reporting.pooled_metrics(runs) if runs else reporting.shipped()
    for table in reporting.result_tables(metrics):
        print_table(table)
    own: dict[str, Any] | None = {} if runs else None  # the shipped studies are not of these runs
    claims = reporting.agreement(reporting.measured(metrics, own))
    print_table(claims[["claim", "where", "paper", "ours", "seeds", "verdict"]])
    print(reporting.in_short(claims))
    if out:
        print(f"metrics in {write_json(out, metrics)}")
    if readme:
        print(f"results in {', '.join(map(str, reporting.write_readme()))}")
    if len(runs) == 1:
        try:
            print(f"page in {reporting.build_page(runs[0], page)}")
        except UserError as error:
            if page:
                raise
            print(f"no page: {error}")


@commands.command()
def doctor() -> None:
    """Check what the course needs: one OK or FAIL line each, with what to do."""
    from iadr1_lib.course import doctor

    failed = 0
    for check in doctor.examine():
        print(check, flush=True)
        failed += not check.ok
    print(f"{failed} to correct" if failed else "all is well: iadr1 run --profile mini")
    if failed:
        raise typer.Exit(1)
