"""Commands for models of real size: plan, fetch, check-vllm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from iadr1_lib.cli.options import ProfileOption, make_console
from iadr1_lib.errors import UserError

if TYPE_CHECKING:
    from iadr1_lib.training.plan import Plan

TEXTURES = """The textures are photographs of materials by ambientCG.com (CC0 1.0). They do not ship with the project.
Training used the thumbnails of 55 materials in the repository fabien-michel/sweethome3d-textures-ambientcg on GitHub,
commit 1a475099a89a9b979bbd15b6f59305d260795b80, folder previews/: contact sheets with 7 columns of cells of 144 x 176
pixels, a thumbnail of 128 x 128 in each. Save each thumbnail as <Material>_NNN.webp, NNN its place on the sheet, in one
folder, and name that folder: iadr1 run --profile photo --set world.textures=FOLDER"""
commands = typer.Typer()


@commands.command()
def plan(
    profile: ProfileOption = "gpu",
    model: Annotated[str | None, typer.Option(help="Short name, hub id or folder; by default the profile's.")] = None,
    images: Annotated[int, typer.Option(min=1, max=2, help="Pictures per prompt; 2 with a reference.")] = 1,
    gpu_gib: Annotated[
        float | None, typer.Option(help="Memory of a GPU; by default this one's, or the profile's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what training a model needs before anything is loaded: parameters, tokens, steps, memory, what to lower.

    Where the profile says auto, it chooses passes and checkpointing, as the training will.
    """
    import dataclasses

    from iadr1_lib.runs import load_profile
    from iadr1_lib.training import plan

    chosen = load_profile(profile)
    settings = plan.settings_of(chosen)
    there = gpu_gib or plan.memory_there(settings.gpu_gib)
    settings = dataclasses.replace(settings, images=images, gpu_gib=round(there, 1))
    planned = plan.plan(model or str(chosen.section("model").get("name", "mini")), settings)
    if as_json:
        print(json.dumps(dataclasses.asdict(planned), indent=1))
        return
    for table in _plan_tables(planned):
        make_console().print(table)
    for stage in planned.stages:
        is_open = settings.rows(stage.stage) is None or settings.gradient_checkpointing is None
        reason = "the fastest that fits" if is_open else "as the profile says"
        print(f"{stage.stage.replace('_', '-')}: {stage} ({reason})")
    for number, advice in enumerate(planned.advice, 1):
        print(f"it will not fit; lower {advice}" if number == 1 else f"  {number}. {advice}")


def _plan_tables(planned: Plan) -> list[Table]:
    facts = Table("what", "number", title=planned.model)
    for part, count in planned.parameters.items():
        facts.add_row(f"parameters, {part}", f"{count:,}")
    facts.add_row("parameters, all", f"{sum(planned.parameters.values()):,}")
    stages = Table("per GPU, estimated", *(stage.stage.replace("_", "-") for stage in planned.stages))
    for name, values in (
        ("trained parameters", [stage.trainable for stage in planned.stages]),
        ("tokens of a square picture", [stage.tokens.square for stage in planned.stages]),
        ("tokens of a picture at worst", [stage.tokens.worst for stage in planned.stages]),
        ("longest sequence (tokens)", [stage.sequence for stage in planned.stages]),
        ("steps", [stage.steps for stage in planned.stages]),
    ):
        stages.add_row(name, *(f"{value:,}" for value in values))
    shapes = (" x ".join(map(str, stage.tokens.worst_shape)) for stage in planned.stages)
    stages.add_row("its shape (pixels)", *shapes)
    for field in ("weights", "gradients", "optimiser", "gathered", "activations", "logits", "reference", "generation"):
        stages.add_row(f"{field} (GiB)", *(f"{getattr(stage.memory, field):.2f}" for stage in planned.stages))
    stages.add_row("peak (GiB)", *(f"{stage.memory.total:.1f}" for stage in planned.stages))
    fits = ("yes" if stage.fits else "no" for stage in planned.stages)
    stages.add_row(f"fits {planned.settings.gpu_gib:g} GiB, a tenth left free", *fits)
    return [facts, stages]


@commands.command()
def fetch(
    what: Annotated[
        Literal["textures"] | None, typer.Argument(help="textures: say where those of --profile photo come from.")
    ] = None,
    profile: ProfileOption = "gpu",
    model: Annotated[str | None, typer.Option(help="Short name or hub id; by default the profile's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")] = False,
) -> None:
    """Fetch a profile's model and the paper's data sets, so that everything later runs without a network."""
    if what:
        print(TEXTURES)
        return
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
    if not dry_run:
        fetching.fetch(wanted)


@commands.command("check-vllm")
def check_vllm(
    data: Annotated[Path, typer.Option(help="Pictures to ask about: a data set's folder.")],
    model: Annotated[str, typer.Option(help="Short name, hub id or folder.")] = "llava-onevision-0.5b",
    pictures: Annotated[int, typer.Option(min=1, help="How many to compare on.")] = 16,
) -> None:
    """Compare vLLM's tokens and log-probabilities with transformers', before a training may use it."""
    from iadr1_lib.data import load_samples, open_image
    from iadr1_lib.evaluation import vllm_check
    from iadr1_lib.models import ModelSettings, model_folder
    from iadr1_lib.training import launch

    launch.require_vllm()
    folder = model_folder(ModelSettings(model))
    shown = [open_image(sample.image) for sample in load_samples(data)[:pictures]]
    questions = [[picture] for picture in shown] + [[shown[0], picture] for picture in shown[: pictures // 4]]
    parity = vllm_check.compare(folder, questions)
    print(f"the same prompt tokens: {parity.same_prompt_tokens} of {parity.prompts}")
    print(
        f"log-probabilities differ by {parity.mean_difference:.4f} on average, {parity.largest_difference:.4f} at most"
    )
    print(f"noted in {vllm_check.record(model, parity)}")
    if not parity.passed:
        raise UserError(f"vLLM and transformers disagree on {model}: leave engine.vllm off")
