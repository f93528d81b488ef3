"""Commands around runs of the course: run, train, ablate, report, kit, doctor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from iadr1_lib.cli.options import (
    MetricsOption,
    ProfileOption,
    make_console,
    option_groups,
    print_table,
    require_metrics_file,
)
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.files import write_json
from iadr1_lib.runs import Choices, Run, write_choices

DEFAULT_PROFILE = "mini"
GivenProfile = Annotated[
    str | None, typer.Option(help="Size of the course: a file in data/profiles/; by default mini.")
]
GivenSeed = Annotated[
    int | None, typer.Option(min=0, help="Seed of everything that is drawn or sampled; by default 0.")
]
commands = typer.Typer()


class Stage(StrEnum):
    """The two stages, and the control: PA-SFT continued instead of SC-GRPO."""

    PA_SFT = "pa-sft"
    SC_GRPO = "sc-grpo"
    CONTROL = "control"


@dataclass
class RunOptions:
    """What a run does otherwise than its profile says."""

    model: Annotated[str | None, typer.Option(help="In place of the profile's: short name, hub id or folder.")] = None
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting in place of the profile's: section.key=value. Repeatable."),
    ] = None
    report_to: Annotated[str | None, typer.Option(help="Passed on to the trainer: tensorboard, wandb …")] = None
    folder: Annotated[Path | None, typer.Option(help="Run folder, in place of the one named after the choices.")] = None

    def settings(self) -> dict[str, Any]:
        """The settings that the options give, by "section.key"; paths are absolute, since notebooks run elsewhere."""
        from iadr1_lib.runs import MODEL, parse_settings

        settings = parse_settings(self.set_ or [])
        settings |= {MODEL: self.model} if self.model else {}
        for name in (MODEL, "data.expert_ad", "data.benchmarks"):
            if name in settings and (place := Path(str(settings[name]))).is_dir():
                settings[name] = str(place.absolute())
        if self.report_to:
            settings |= {f"{section}.report_to": self.report_to for section in ("pa_sft", "sc_grpo", "control")}
        return settings

    def open_run(self, profile: str | None, seed: int | None, given: Choices) -> Run:
        """The run that the options name, checked; nothing is written.

        In --folder it goes on with what its run.json holds, and with what is given before that. In the default folder
        only what is given counts.

        Raises:
            WrongUse: the folder belongs to a run of another profile, seed or model, or about other data.
        """
        from iadr1_lib.course import steps
        from iadr1_lib.runs import MODEL, load_profile, noted_run, read_choices

        noted = noted_run(self.folder) if self.folder else None
        name, number = noted or (profile or DEFAULT_PROFILE, seed or 0)
        for option, value, known in (("--profile", profile, name), ("--seed", seed, number)):
            if value not in (None, known):
                raise WrongUse(
                    f"{self.folder} is a run of {option} {known}: leave {option} out, or name another --folder"
                )
        own = load_profile(name).sections.get("model", {}).get("name")
        if self.folder is None and given.settings.get(MODEL) == own:
            given.settings.pop(MODEL, None)
        place = self.folder or Run(name, number, choices=given).folder
        noted, stored = noted_run(place), read_choices(place)
        choices = stored.updated(given) if self.folder else given
        models = [some.settings.get(MODEL, own) for some in (stored, choices)]
        if noted and (stored.data != choices.data or models[0] != models[1]):
            raise WrongUse(f"{place} holds a run on other pictures or with another model: name another --folder")
        if (choices.test or choices.hold_out) and not choices.data:
            raise WrongUse("--test and --hold-out say how to split --data: name the data sets to train on as well")
        chosen = Run(name, number, place, choices)
        steps.check_settings(chosen)
        return chosen


@commands.command()
@option_groups
def run(
    options: RunOptions,
    profile: GivenProfile = None,
    only: Annotated[str | None, typer.Option(help="Notebooks by number, such as 04,07.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Data set of your own to train on, with masks. Repeatable.")
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(help="Data set to test on, in place of a part of --data. Repeatable.")
    ] = None,
    hold_out: Annotated[
        list[str] | None, typer.Option(help="Category of --data to test on; by default the seed chooses. Repeatable.")
    ] = None,
    seed: GivenSeed = None,
    force: Annotated[bool, typer.Option("--force", help="Run and train again what is up to date.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the notebooks print.")] = False,
    solutions: Annotated[bool, typer.Option("--solutions", help="Solve the exercises, and check them.")] = False,
) -> None:
    """Execute the course's notebooks in order; skips what is up to date, goes on where it was stopped."""
    from iadr1_lib.course import batch, sources

    if test and hold_out:
        raise WrongUse("--test brings a test set of its own, so nothing is held out: give --test or --hold-out")
    given = Choices(_absolute(data), _absolute(test), tuple(hold_out or ()), options.settings())
    chosen = options.open_run(profile, seed, given)
    batch.select(batch.find_notebooks(), only)  # raises for a number that is none
    if chosen.source != "world":
        for sentence in sources.prepare(chosen):
            print(sentence, flush=True)
    write_choices(chosen.folder, chosen.profile.name, chosen.seed, chosen.choices)
    outcomes = batch.run_notebooks(chosen, only, force, verbose, lambda line: print(line, flush=True), solutions)
    console = make_console()
    console.print(batch.outcome_table(outcomes))
    console.print(f"results in {chosen.folder}")
    if any(outcome.status in (batch.FAILED, batch.NOT_RUN) for outcome in outcomes):
        raise typer.Exit(1)


def _absolute(folders: list[Path] | None) -> tuple[str, ...]:
    return tuple(str(folder.absolute()) for folder in folders or ())


@commands.command()
@option_groups
def train(
    options: RunOptions,
    stage: Annotated[Stage, typer.Option(help="pa-sft, or sc-grpo (which needs pa-sft).")],
    profile: GivenProfile = None,
    seed: GivenSeed = None,
    engine: Annotated[str | None, typer.Option(help="single, or of data/accelerate/: ddp, zero3, fsdp2.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="In place of the profile's.")] = None,
    vllm: Annotated[str | None, typer.Option(help="Rollouts by vLLM: off, server or colocate.")] = None,
    vllm_url: Annotated[str | None, typer.Option(help="Where the vLLM server listens.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train a finished stage again.")] = False,
) -> None:
    """Train one stage in the run folder; a finished stage whose inputs have not changed is used again."""
    from iadr1_lib.course import steps
    from iadr1_lib.training import launch

    chosen = options.open_run(profile, seed, Choices(settings=options.settings()))
    given: dict[str, Any] = {"config": engine, "processes": processes, "vllm": vllm, "vllm_url": vllm_url}
    changed = replace(steps.engine_settings(chosen), **{key: value for key, value in given.items() if value})
    if changed.config != launch.SINGLE:
        launch.config_file(changed.config)
    elif changed.processes > 1:
        raise WrongUse(f"engine single is one process, not {changed.processes}: add --engine ddp, zero3 or fsdp2")
    if changed.vllm not in ("off", "server", "colocate"):
        raise WrongUse(f"unknown --vllm {changed.vllm}: choose off, server or colocate")
    if not launch.is_launched():
        write_choices(chosen.folder, chosen.profile.name, chosen.seed, chosen.choices)
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
def kit(
    out: Annotated[Path | None, typer.Option(help="New folder for the kit.")] = None,
    run: Annotated[Path | None, typer.Option(help="Finished run, for figures, times and checkpoints.")] = None,
    wheels: Annotated[bool, typer.Option("--wheels", help="Download all packages, for machines without network.")] = (
        False
    ),
    unpack: Annotated[Path | None, typer.Option(help="A kit: put its checkpoints into runs/ (with --start).")] = None,
    start: Annotated[str | None, typer.Option(help="The notebook to start at, such as 05.")] = None,
) -> None:
    """Make the teacher's kit (slides, handout, checkpoints, packages), or take the checkpoints of one."""
    from iadr1_lib.course import checkpoints
    from iadr1_lib.course import kit as kits

    if out and not (unpack or start):
        print(f"kit in {kits.make(out, run, wheels, say=lambda line: print(line, flush=True))}: open its index.html")
    elif unpack and start and not (out or run or wheels):
        print(checkpoints.unpack(unpack, start))
    else:
        raise WrongUse("say --out DIR to make a kit, or --unpack KIT --start 05 to take checkpoints of one")


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
