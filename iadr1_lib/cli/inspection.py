"""The commands that judge pictures: inspect, and app, the same in a browser."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iadr1_lib.cli.options import PromptOption, option_groups
from iadr1_lib.errors import UserError
from iadr1_lib.runs import Run, model_path, noted_run, read_choices

if TYPE_CHECKING:
    from PIL import Image

    from iadr1_lib.evaluation.inspection import Finding, Inspector

AT_ONCE = 32  # pictures that are opened and asked about together
commands = typer.Typer()


@dataclass
class GoodOptions:
    """Good pictures of the same kind: to compare with, and to set a threshold by."""

    reference: Annotated[
        list[Path] | None, typer.Option(help="A good picture of the kind to compare with. Repeatable with photo.")
    ] = None
    good: Annotated[
        Path | None, typer.Option(help="Folder of good pictures: P(Yes) is compared with theirs (--false-alarms).")
    ] = None
    false_alarms: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of the good pictures that may lie above the threshold.")
    ] = 0.05


@commands.command()
@option_groups
def inspect(
    images: Annotated[list[Path], typer.Argument(help="Pictures of any size and mode.")],
    good: GoodOptions,
    model: Annotated[str, typer.Option(help="photo (which ships), or a folder such as runs/mini-s0/sc_grpo/model.")] = (
        "photo"
    ),
    save_marked: Annotated[
        Path | None, typer.Option(help="Folder for copies with the cell marked, beside a heat map of the distances.")
    ] = None,
    prompt: PromptOption = "bare",
) -> None:
    """Ask the model about pictures: prints answer, type, location, reasoning and P(Yes)."""
    from iadr1_lib.data import open_image, share_depth
    from iadr1_lib.evaluation import inspection, prediction

    folder = Path(model_path(model))
    if save_marked:
        save_marked.mkdir(parents=True, exist_ok=True)
    goods = _pictures_in(good.good) if good.good else []
    share_depth([*images, *(good.reference or []), *goods])
    references = [open_image(path) for path in good.reference or []]
    inspector = inspection.Inspector(folder, prompt, references)
    for place in inspector.odd_references():
        print(f"{(good.reference or [])[place]} looks defective beside the other references: leave it out")
    limit = _threshold(inspector, goods, good.false_alarms) if goods else None
    grid = prediction.grid_of(folder)
    faults: list[str] = []
    for path, picture, finding in _findings(inspector, images, faults):
        print(f"{path} ({picture.width} x {picture.height})")
        for name, value in _lines(finding, limit):
            print(f"  {name:<10}{value or '-'}")
        if save_marked:
            print(f"  {'marked':<10}{_save_marked(save_marked, path, picture, finding, grid)}")
    if faults:
        raise UserError(f"{len(faults)} of {len(images)} pictures could not be judged. {' '.join(faults)}")


@commands.command()
def app(
    run: Annotated[
        Path | None, typer.Option(help="Folder of a run whose stages are asked, such as runs/mini-s0; else photo's.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; by default this machine alone can reach it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option(help="By default the first free one from 7860 on.")] = None,
) -> None:
    """Open a page in the browser: drop a picture, and see what base, PA-SFT and SC-GRPO say of it side by side."""
    from iadr1_lib.course import inspector

    inspector.require_gradio()
    inspector.serve(inspector.load_stages(_run_in(run) if run else None), host, port)


def _run_in(folder: Path) -> Run:
    if not (noted := noted_run(folder)):
        raise UserError(f"{folder} holds no run (it has no run.json): name a folder such as runs/mini-s0 (--run)")
    return Run(*noted, folder, read_choices(folder))


def _pictures_in(folder: Path) -> list[Path]:
    from iadr1_lib.data import list_pictures

    if not (pictures := list_pictures(folder, folder)):
        raise UserError(f"{folder} holds no pictures: name a folder with good pictures of the kind (--good)")
    return pictures


def _threshold(inspector: Inspector, paths: Sequence[Path], false_alarms: float) -> float:
    from iadr1_lib.data import open_image

    good = [open_image(path) for path in paths]
    limit = inspector.threshold(good, false_alarms)
    print(
        f"threshold: P(Yes) above {limit:.3f}, from {len(good)} good pictures, false alarms at most {false_alarms:.0%}"
    )
    suspects = [path for path, p in zip(paths, inspector.p_yes(good), strict=True) if p > max(limit, 0.9)]
    for path in suspects:
        print(f"{path} looks defective and is among the good pictures: check it")
    return limit


def _findings(
    inspector: Inspector, paths: Sequence[Path], faults: list[str]
) -> Iterator[tuple[Path, Image.Image, Finding]]:
    """Each picture with what was found; those that cannot be opened are noted in `faults`."""
    from iadr1_lib.data import open_image

    for start in range(0, len(paths), AT_ONCE):
        shown = []
        for path in paths[start : start + AT_ONCE]:
            try:
                shown.append((path, open_image(path)))
            except UserError as error:
                faults.append(str(error))
        findings = inspector.judge([picture for _, picture in shown]) if shown else []
        yield from ((path, picture, finding) for (path, picture), finding in zip(shown, findings, strict=True))


def _lines(finding: Finding, limit: float | None) -> list[tuple[str, str | None]]:
    from iadr1_lib.answer import parse_answer

    answer = parse_answer(finding.raw)
    lines = [
        ("answer", answer.answer or f"none that can be read; the model wrote: {finding.raw.strip()!r}"),
        ("type", answer.type),
        ("location", answer.location),
        ("reasoning", answer.reasoning),
    ]
    if finding.p_yes is not None:
        verdict = "" if limit is None else f" ({'above' if finding.p_yes > limit else 'within'} the threshold)"
        lines.append(("P(Yes)", f"{finding.p_yes:.3f}{verdict}"))
    if finding.cut:
        lines.append(("note", "the answer reached the limit of length and was cut there"))
    return [*lines, *([("note", finding.remark)] if finding.remark else [])]


def _save_marked(folder: Path, path: Path, picture: Image.Image, finding: Finding, grid: int) -> Path:
    """The picture with its cell and answer; with a heat map beside it where the model compares."""
    from PIL import Image

    from iadr1_lib.answer import cell_of_words, parse_answer
    from iadr1_lib.reporting import heat_map, mark_cell

    answer = parse_answer(finding.raw)
    cell = cell_of_words(answer.location or "", grid)
    words = [word for word in (answer.answer, answer.type, answer.location) if word]
    marked = mark_cell(picture, cell, ", ".join(words) or "no answer", grid=grid)
    if finding.heat is not None:
        heat = mark_cell(heat_map(picture, finding.heat), None, "distance, dark 0 to bright 0.8", grid=grid)
        sheet = Image.new("RGB", (marked.width + heat.width, max(marked.height, heat.height)), "white")
        sheet.paste(marked, (0, 0))
        sheet.paste(heat, (marked.width, 0))
        marked = sheet
    place = path.resolve()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:8]  # many pictures are called good/000.png
    target = folder / f"{place.parent.name}_{place.stem}_{digest}_marked.png"
    marked.save(target)
    return target
