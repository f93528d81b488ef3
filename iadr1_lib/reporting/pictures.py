"""Pictures: samples, answers and records in sheets, and one picture with a cell marked.

On every sheet the true cell is orange, the predicted one blue and dashed, the outline of a mask pink; green captions
are good or right, red ones wrong or rejected.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from iadr1_lib.answer import GRID, cell_box, cell_names, cell_of_words, parse_answer
from iadr1_lib.data import open_image, read_mask
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import judge
from iadr1_lib.records import Record, Sample
from iadr1_lib.reporting.style import COLOURS, INK, WIDTH, described, styled

_PICTURE = 320  # pixels: longer side of a picture in a sheet, enough for print and small in a notebook file
_FRAMES = (("true cell", COLOURS[1], "-"), ("predicted cell", COLOURS[9], "--"))  # orange, sky blue
_MASK = "#c2187a"  # dark pink
_RIGHT, _WRONG = COLOURS[2], COLOURS[3]  # green, vermilion; always with a word beside


@dataclass(frozen=True)
class _Panel:
    """One picture of a sheet: its caption, the cells and the mask drawn on it, the notes below it."""

    image: str | Path
    caption: str
    colour: str
    true: str | None = None
    predicted: str | None = None
    grid: bool = False
    mask: str | Path | None = None
    note: str = ""


@styled
def sample_sheet(samples: Sequence[Sample], columns: int = 6, title: str | None = None) -> Figure:
    """Pictures side by side; on defective ones the mask's outline, the 3x3 grid and the true cell.

    Args:
        samples: what to show, in this order (a dozen or two: all are opened).
        columns: pictures per row.
        title: a line above the sheet.
    """
    panels = []
    for sample in samples:
        if sample.label == "no":
            panels.append(_Panel(sample.image, "good", _RIGHT, mask=sample.mask))
            continue
        words = (sample.type or "defect", sample.location or "no mask")
        caption = "\n".join(textwrap.fill(word, 130 // columns) for word in words)
        panels.append(_Panel(sample.image, caption, INK, sample.location, grid=True, mask=sample.mask))
    legend = [_FRAMES[0]] if any(panel.true for panel in panels) else []
    return _sheet(panels, columns, title, "samples", legend)


@styled
def answer_sheet(
    predictions: pd.DataFrame,
    n_right: int = 4,
    n_wrong: int = 4,
    seed: int = 0,
    parser: str = "fair",
    title: str | None = None,
) -> Figure:
    """Right and wrong answers, sampled at random: the picture with true and predicted cell, below it the answer.

    Args:
        predictions: rows of predictions.jsonl (image, label, location, type, raw).
        n_right: how many right answers at most.
        n_wrong: how many wrong ones (an answer that cannot be read is wrong).
        seed: which are sampled.
        parser: how answers are read, see `evaluation.read_answer`.
        title: a line above the sheet.
    """
    judged = judge(predictions, parser)
    panels = []
    for right, number in ((1, n_right), (0, n_wrong)):
        rows = judged[judged["correct"] == right]
        sampled = rows.sample(min(number, len(rows)), random_state=seed)
        panels += [_answer_panel(row) for row in sampled.to_dict("records")]
    return _sheet(panels, 4, title, "answers", _FRAMES)


def _answer_panel(row: Mapping[Any, Any]) -> _Panel:
    answer = parse_answer(str(row["raw"]))
    truth = "good" if row["label"] == "no" else _joined(row["type"], row["location"]) or "defect"
    word = _joined(row["answer"]).capitalize() or "not readable"
    verdict, colour = ("right", _RIGHT) if row["correct"] == 1 else ("wrong", _WRONG)
    caption = f"{verdict}: {word}\n{_cut(f'truth: {truth}', 34, 2)}"
    note = "\n".join([_cut(_joined(answer.type, answer.location), 36, 2), _cut(answer.reasoning or row["raw"], 36, 9)])
    true, predicted = _joined(row["location"]), cell_of_words(answer.location or "")
    return _Panel(row["image"], caption, colour, true, predicted, grid=True, note=note.lstrip("\n"))


@styled
def record_gallery(records: Sequence[tuple[Record, str]]) -> Figure:
    """Records with their reasoning below the picture, three a row: accepted, or rejected with the reason.

    Args:
        records: each with the sentence that rejected it, "" if it was accepted.
    """
    panels = []
    for record, reason in records:
        verdict, colour = ("rejected", _WRONG) if reason else ("accepted", _RIGHT)
        caption = f"{verdict}: {_joined(record.type or 'normal', record.location)}\n{_cut(reason, 48, 3)}".strip()
        note = _cut(record.reasoning, 54, 12)
        panels.append(_Panel(record.image, caption, colour, record.location, note=note))
    return _sheet(panels, 3, None, "records", [])


def _sheet(
    panels: Sequence[_Panel], columns: int, title: str | None, what: str, frames: Sequence[tuple[str, str, Any]]
) -> Figure:
    """Draw panels side by side, with a legend of frames (label, colour, line style) and of outlined masks."""
    if not panels:
        raise UserError(f"There are no {what} to show: choose at least one.")
    lines = [sum(text.count("\n") + 1 for text in (panel.caption, panel.note) if text) for panel in panels]
    rows, across, side = -(-len(panels) // columns), min(len(panels), columns), WIDTH / columns
    size = (side * across, rows * (side + 0.15 * max(lines)) + 0.5 + (0.4 if title else 0))
    figure, axes = plt.subplots(rows, across, squeeze=False, figsize=size)
    for panel, axis in zip_longest(panels, axes.flat):
        if panel is None:
            axis.set_axis_off()
            continue
        _draw_panel(panel, axis)
        axis.set(xticks=[], yticks=[], frame_on=False)
        where: Any = "left" if panel.note else "center"
        axis.set_title(panel.caption, fontsize=8, loc=where, color=panel.colour)
        axis.set_xlabel(panel.note, fontsize=7.5, loc=where)
    handles: list[Any] = [
        Patch(facecolor="none", edgecolor=colour, linewidth=2, linestyle=line, label=label)
        for label, colour, line in frames
    ]
    if any(panel.mask for panel in panels):
        handles.append(Line2D([], [], color=_MASK, label="outline of the mask"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    if title:
        figure.suptitle(title)
    return figure


def _draw_panel(panel: _Panel, axis: Axes) -> None:
    image = open_image(panel.image)
    image.thumbnail((_PICTURE, _PICTURE))
    width, height = image.size
    axis.imshow(np.asarray(image), interpolation="nearest")
    if panel.grid:
        for draw, length in ((axis.axvline, width), (axis.axhline, height)):
            for place in (length / 3 - 0.5, 2 * length / 3 - 0.5):
                draw(place, color="white", linewidth=1.6, alpha=0.55)
                draw(place, color="black", linewidth=0.6, alpha=0.7)
    inset = 0.012 * max(width, height)  # so that both frames show where the two cells are one
    for cell, (_, colour, line), room in zip((panel.true, panel.predicted), _FRAMES, (inset, 3 * inset), strict=True):
        if cell:
            left, top, right, bottom = cell_box(cell, width, height)
            corner, size = (left - 0.5 + room, top - 0.5 + room), (right - left - 2 * room, bottom - top - 2 * room)
            axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=2, linestyle=line))
    if panel.mask:
        grey = Image.fromarray(read_mask(panel.mask, panel.image).astype(np.uint8) * 255)
        small = np.asarray(grey.resize((width, height), Image.Resampling.BOX)) > 0  # a thin scratch survives shrinking
        if small.any():
            positions = np.arange(-1, width + 1), np.arange(-1, height + 1)
            padded = np.pad(small, 1).astype(float)  # closes the outline of a mask that touches the edge
            axis.contour(*positions, padded, levels=[0.5], colors=[_MASK], linewidths=1.2)
            axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _joined(*parts: object) -> str:
    """The parts that are words: neither None, nor the NaN that pandas makes of None."""
    return ", ".join(part for part in parts if isinstance(part, str) and part)


def _cut(text: str, width: int, lines: int) -> str:
    # a dollar sign would start matplotlib's formula mode
    return "\n".join(textwrap.wrap(text.replace("$", r"\$"), width, max_lines=lines, placeholder=" …"))


def heat_map(image: Image.Image, heat: NDArray[np.float64], top: float = 0.8) -> Image.Image:
    """The picture in grey with `heat` (rows, columns) over it; `top` is the value of the brightest colour."""
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=float)
    share = Image.fromarray(np.clip(heat / top, 0, 1).astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    weight = np.clip(np.asarray(share), 0, 1)[..., None]
    colours = colormaps["inferno"](weight[..., 0])[..., :3] * 255
    shown = Image.fromarray((grey * (1 - 0.75 * weight) + colours * 0.75 * weight).astype(np.uint8))
    return described(shown, "picture in grey under a heat map: bright where the heat is high")


def mark_cell(image: Image.Image, cell: str | None, text: str | None = None, grid: int = GRID) -> Image.Image:
    """The picture with its grid of places and one cell marked, and a line of text below it.

    Small pictures are enlarged by a whole factor first, so that the frame and the text can be seen; larger
    ones keep their size, and the frame grows with them. Without a cell no grid is drawn. The input is not changed.
    """
    factor = max(1, -(-384 // max(image.size)))
    marked = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    line = max(2, round(min(marked.size) / 120))
    frames = [(name, "#bbbbbb", max(1, line // 4)) for name in cell_names(grid)] + [(cell, _FRAMES[0][1], line)]
    for name, colour, thick in frames if cell else ():
        left, top, right, bottom = cell_box(str(name), *marked.size, grid)
        if right > left and bottom > top:  # a picture two pixels wide has no room for three cells
            thick = max(1, min(thick, (right - left) // 3, (bottom - top) // 3))
            ImageDraw.Draw(marked).rectangle((left, top, right - 1, bottom - 1), outline=colour, width=thick)
    marked = _with_text(marked, text) if text else marked
    return described(marked, f"picture with {f'the cell {cell} marked' if cell else 'no cell marked'}; {text or ''}")


def _with_text(image: Image.Image, text: str) -> Image.Image:
    """A white strip with wrapped text below the picture."""
    size = max(14, round(min(image.width, 2000) / 36))
    font = ImageFont.load_default(size)
    width = max(image.width, 240)
    characters = int((width - size) / font.getlength(text) * len(text) * 0.95)
    wrapped = "\n".join(textwrap.fill(paragraph, characters) for paragraph in text.splitlines())
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    strip = round(draw.multiline_textbbox((0, 0), wrapped, font=font)[3]) + size
    page = Image.new("RGB", (width, image.height + strip), "white")
    page.paste(image, ((width - image.width) // 2, 0))
    ImageDraw.Draw(page).multiline_text((size // 2, image.height + size // 3), wrapped, fill=INK, font=font)
    return page
