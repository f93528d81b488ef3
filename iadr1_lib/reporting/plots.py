"""Every figure of the course.

Each function takes a table (or samples, or a picture) and returns a matplotlib Figure that is already closed
in pyplot: a notebook cell that ends with the call shows it once, and a loop over hundreds of figures keeps
none in memory. The look (size, fonts, colours that colour-blind readers can tell apart) is set here and
nowhere else.

Shares are in percent, 0 to 100. Columns ``low`` and ``high`` are the ends of an interval, in the unit of
``value``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from PIL import Image, ImageDraw, ImageFont

from iadr1_lib.answer import (
    CELLS,
    DEFECT_TYPES,
    GRID,
    category_of_words,
    cell_box,
    cell_names,
    cell_of_words,
    parse_answer,
)
from iadr1_lib.data import open_image, read_mask
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import MEAN, judge
from iadr1_lib.records import Record, Sample

WIDTH = 9.0  # inches: a notebook's column
_PICTURE = 320  # pixels: longer side of a picture in a sheet, enough for print and small in a notebook file

_COLOURS = sns.color_palette("colorblind").as_hex()
_INK, _GREY = "#333333", "#8c8c8c"
_TRUTH, _PREDICTED, _MASK = _COLOURS[1], _COLOURS[9], "#c2187a"  # orange, sky blue, dark pink
CELL_COLOURS = {"true cell": _TRUTH, "predicted cell": _PREDICTED}
_RIGHT, _WRONG = _COLOURS[2], _COLOURS[3]  # green, vermilion; always with a word beside

STAGES = {"base": "base", "pa_sft": "PA-SFT", "sc_grpo": "SC-GRPO", "control": "control"}
_STAGE_COLOURS = {"base": _GREY, "pa_sft": _COLOURS[0], "sc_grpo": _COLOURS[1], "control": _COLOURS[2]}

_STYLE: dict[str, Any] = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("notebook", font_scale=0.8),
    "axes.edgecolor": "#cccccc",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 12,
    "font.size": 9,
    "grid.color": "#e8e8e8",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.title_fontsize": 8.5,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
    "text.color": _INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}

# Titles with units for the columns that TRL's trainers log; training_curves looks here first.
TITLES = {
    "loss": "loss",
    "dev_score": "score on the dev families (%)",
    "eval_loss": "loss on held-out records (nats per token)",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "entropy": "entropy of the next token (nats)",
    "mean_token_accuracy": "tokens predicted right (share)",
    "reward": "total reward (points)",
    "reward_std": "spread of reward within groups (points)",
    "share_yes": "answers Yes (share)",
    "frac_reward_zero_std": "groups without spread (share)",
    "kl": "KL to the starting model (nats per token)",
    "completions/mean_length": "length of an answer (tokens)",
    "completions/clipped_ratio": "answers cut at the limit (share)",
}

P = ParamSpec("P")


def _figure(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Give a drawing function the course's style, and close in pyplot whatever it opened."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        before = set(plt.get_fignums())
        with plt.rc_context(_STYLE):  # type: ignore[arg-type]  # matplotlib lists every key
            try:
                return draw(*args, **kwargs)
            finally:
                for number in set(plt.get_fignums()) - before:
                    plt.close(number)

    return styled


def _need(table: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(f"The table of {what} has no column {', '.join(missing)}: it has {', '.join(table.columns)}.")
    if table.empty:
        raise UserError(f"The table of {what} has no rows: there is nothing to draw.")


# --- pictures -------------------------------------------------------------------------------------


@_figure
def sample_sheet(
    samples: Sequence[Sample],
    columns: int = 6,
    masks: bool = True,
    grid: bool = True,
    title: str | None = None,
) -> Figure:
    """Pictures side by side; on defective ones the mask's outline, the 3x3 grid and the true cell.

    Args:
        samples: what to show, in this order (a dozen or two: all are opened).
        columns: pictures per row.
        masks: draw outlines of masks.
        grid: draw the grid and the true cell.
        title: a line above the sheet.
    """
    if not samples:
        raise UserError("There are no samples to show: choose at least one.")
    captions = [_sample_caption(sample, width=int(130 / columns)) for sample in samples]
    figure, axes, _ = _sheet(len(samples), columns, _lines(captions))
    for axis, sample, caption in zip(axes, samples, captions, strict=True):
        width, height = _show(axis, sample.image)
        if sample.label == "yes" and grid:
            _draw_grid(axis, width, height)
            if sample.location:
                _draw_cell(axis, sample.location, width, height, _TRUTH)
        if masks and sample.mask:
            _draw_outline(axis, sample.mask, width, height)
        axis.set_title(caption, fontsize=8, color=_INK if sample.label == "yes" else _RIGHT)
    handles: list[Any] = []
    if grid and any(sample.location for sample in samples):
        handles.append(Patch(facecolor="none", edgecolor=_TRUTH, linewidth=2, label="true cell"))
    if masks and any(sample.mask for sample in samples):
        handles.append(Line2D([], [], color=_MASK, label="outline of the mask"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _title_above(figure, title)
    return figure


@_figure
def answer_sheet(
    predictions: pd.DataFrame,
    n_right: int = 4,
    n_wrong: int = 4,
    seed: int = 0,
    parser: str = "fair",
    title: str | None = None,
) -> Figure:
    """Right and wrong answers, drawn at random: the picture with true and predicted cell, below it the answer.

    Args:
        predictions: rows of predictions.jsonl (image, label, location, type, raw).
        n_right: how many right answers at most.
        n_wrong: how many wrong ones (an answer that cannot be read is wrong).
        seed: which are drawn.
        parser: how answers are read, see ``scoring.read_answer``.
        title: a line above the sheet.
    """
    _need(predictions, ["image", "label", "location", "type", "raw"], "predictions")
    judged = judge(predictions, parser)
    right, wrong = judged[judged["correct"] == 1], judged[judged["correct"] == 0]
    drawn = [
        rows.sample(min(number, len(rows)), random_state=seed).to_dict("records")
        for rows, number in ((right, n_right), (wrong, n_wrong))
    ]
    rows = [row for some in drawn for row in some]
    if not rows:
        raise UserError("There are no answers to show: ask for at least one.")
    captions, notes = [_answer_caption(row) for row in rows], [_answer_note(row) for row in rows]
    figure, axes, below = _sheet(len(rows), 4, _lines(captions), _lines(notes))
    for axis, note_axis, row, caption, note in zip(axes, below, rows, captions, notes, strict=True):
        width, height = _show(axis, str(row["image"]))
        axis.set_anchor("SW")
        _draw_grid(axis, width, height)
        predicted = cell_of_words(parse_answer(str(row["raw"])).location or "")
        if _known(row["location"]):
            _draw_cell(axis, str(row["location"]), width, height, _TRUTH)
        if predicted:
            _draw_cell(axis, predicted, width, height, _PREDICTED, dashed=True)
        axis.set_title(caption, fontsize=8, loc="left", color=_RIGHT if row["correct"] == 1 else _WRONG)
        note_axis.text(0, 1, note, va="top", fontsize=7.5, in_layout=False)
    handles = [
        Patch(facecolor="none", edgecolor=_TRUTH, linewidth=2, label="true cell"),
        Patch(facecolor="none", edgecolor=_PREDICTED, linewidth=2, linestyle="--", label="predicted cell"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    _title_above(figure, title)
    return figure


@_figure
def record_gallery(told: Sequence[tuple[Record, str]], title: str | None = None) -> Figure:
    """Records with their reasoning below the picture, three a row: accepted, or rejected with the reason.

    Args:
        told: records, each with the sentence that rejected it, "" if it was accepted.
        title: a line above the sheet.
    """
    if not told:
        raise UserError("There are no records to show: ask for at least one.")
    captions = [
        f"{'rejected' if reason else 'accepted'}: {_joined(record.type or 'normal', record.location)}"
        for record, reason in told
    ]
    notes = [_cut(record.reasoning, 58, 12) for record, _ in told]
    reasons = [_cut(reason, 58, 3) for _, reason in told]
    figure, axes, below = _sheet(len(told), 3, _lines(captions), _lines(notes) + _lines(reasons) + 1)
    for axis, note_axis, (record, reason), caption, note, why in zip(
        axes, below, told, captions, notes, reasons, strict=True
    ):
        width, height = _show(axis, record.image)
        axis.set_anchor("SW")
        if record.location:
            _draw_cell(axis, record.location, width, height, _TRUTH)
        axis.set_title(caption, fontsize=8, loc="left", color=_WRONG if reason else _RIGHT)
        below_why = "\n" * (why.count("\n") + 1 if why else 0)
        note_axis.text(0, 1, why, va="top", fontsize=7, color=_WRONG, in_layout=False)
        note_axis.text(0, 1, below_why + note, va="top", fontsize=7, in_layout=False)
    _title_above(figure, title)
    return figure


def mark_cell(
    image: Image.Image, cell: str | None, text: str | None = None, predicted: str | None = None, grid: int = GRID
) -> Image.Image:
    """The picture with its grid of places and one cell marked, and a line of text below it.

    Small pictures are enlarged by a whole factor first, so that the frame and the text can be seen; larger
    ones keep their size, and the frame grows with them. ``predicted`` marks a second cell, in blue and inside
    the first where the two are one. With neither no grid is drawn. The input is not changed.
    """
    factor = max(1, -(-384 // max(image.size)))
    marked = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    width, height = marked.size
    line = max(2, round(min(width, height) / 120))
    if cell is not None or predicted is not None:
        draw = ImageDraw.Draw(marked)
        for name in cell_names(grid):
            _frame(draw, cell_box(name, width, height, grid), "#bbbbbb", max(1, line // 4))
    if cell is not None:
        _frame(draw, cell_box(cell, width, height, grid), _TRUTH, line)
    if predicted is not None:
        left, top, right, bottom = cell_box(predicted, width, height, grid)
        inset = 2 * line
        _frame(draw, (left + inset, top + inset, right - inset, bottom - inset), _PREDICTED, line)
    return _with_text(marked, text) if text else marked


def _frame(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: str, line: int) -> None:
    left, top, right, bottom = box
    if right > left and bottom > top:  # a picture two pixels wide has no room for three cells
        line = max(1, min(line, (right - left) // 3, (bottom - top) // 3))
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line)


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
    ImageDraw.Draw(page).multiline_text((size // 2, image.height + size // 3), wrapped, fill=_INK, font=font)
    return page


def _sheet(count: int, columns: int, caption_lines: int, note_lines: int = 0) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure of ``count`` square axes, and as many for notes below them; all without frames."""
    rows, across = -(-count // columns), min(count, columns)
    side = WIDTH / columns
    heights = [side + 0.15 * caption_lines, 0.15 * note_lines + 0.01]  # inches
    figure, grid = plt.subplots(
        2 * rows,
        across,
        squeeze=False,
        figsize=(side * across, rows * sum(heights) + 0.5),
        height_ratios=heights * rows,
    )
    for axis in grid.flat:
        axis.set_axis_off()
    return figure, list(grid[0::2].flat)[:count], list(grid[1::2].flat)[:count]


def _title_above(figure: Figure, title: str | None) -> None:
    """A line above a sheet, in room of its own: captions of several lines reach up to the edge."""
    if title:
        figure.set_figheight(figure.get_figheight() + 0.4)
        figure.suptitle(title)


def _lines(texts: Iterable[str]) -> int:
    return max(text.count("\n") + 1 for text in texts)


def _show(axis: Axes, path: str | Path) -> tuple[int, int]:
    """Draw a picture, no larger than a sheet needs; returns its width and height as drawn."""
    image = open_image(path)
    image.thumbnail((_PICTURE, _PICTURE))
    axis.imshow(np.asarray(image), interpolation="nearest")
    return image.size


def _draw_grid(axis: Axes, width: int, height: int) -> None:
    for step in (1, 2):
        for draw, length in ((axis.axvline, width), (axis.axhline, height)):
            draw(step * length / 3 - 0.5, color="white", linewidth=1.6, alpha=0.55)
            draw(step * length / 3 - 0.5, color="black", linewidth=0.6, alpha=0.7)


def _draw_cell(axis: Axes, cell: str, width: int, height: int, colour: str, dashed: bool = False) -> None:
    left, top, right, bottom = cell_box(cell, width, height)
    inset = 0.012 * max(width, height) * (3 if dashed else 1)  # so that both frames show where the two agree
    box = Rectangle(
        (left - 0.5 + inset, top - 0.5 + inset),
        right - left - 2 * inset,
        bottom - top - 2 * inset,
        fill=False,
        edgecolor=colour,
        linewidth=2,
        linestyle="--" if dashed else "-",
    )
    axis.add_patch(box)


def _draw_outline(axis: Axes, mask: str | Path, width: int, height: int) -> None:
    grey = Image.fromarray(read_mask(mask).astype(np.uint8) * 255)
    small = np.asarray(grey.resize((width, height), Image.Resampling.BOX)) > 0  # a thin scratch survives shrinking
    padded = np.pad(small, 1)  # closes the outline of a mask that touches the edge
    positions = np.arange(-1, width + 1), np.arange(-1, height + 1)
    if small.any():
        axis.contour(*positions, padded.astype(float), levels=[0.5], colors=[_MASK], linewidths=1.2)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _sample_caption(sample: Sample, width: int) -> str:
    if sample.label == "no":
        return "good"
    parts = [sample.type or "defect", sample.location or "no mask"]
    return "\n".join(textwrap.fill(part, width) for part in parts)


def _answer_caption(row: Mapping[Any, Any]) -> str:
    truth = "good" if row["label"] == "no" else _joined(row["type"], row["location"]) or "defect"
    verdict = "right" if row["correct"] == 1 else "wrong"
    said = str(row["answer"]).capitalize() if _known(row["answer"]) else "not readable"
    return f"{verdict}: {said}\n{_cut(f'truth: {truth}', 34, 2)}"


def _answer_note(row: Mapping[Any, Any]) -> str:
    """What the model wrote: place and type, then its reasoning (the raw text, if it holds no tags)."""
    answer = parse_answer(str(row["raw"]))
    named = _joined(answer.type, answer.location)
    reasoning = _cut(answer.reasoning or str(row["raw"]), 36, 9)
    return f"{_cut(named, 36, 2)}\n{reasoning}" if named else reasoning


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if _known(part))


def _known(value: object) -> bool:
    """False for None, for "" and for the NaN that pandas makes of None."""
    return isinstance(value, str) and value != ""


def _cut(text: str, width: int, lines: int) -> str:
    # a dollar sign would start matplotlib's formula mode
    return "\n".join(textwrap.wrap(text.replace("$", r"\$"), width, max_lines=lines, placeholder=" …"))


# --- training -------------------------------------------------------------------------------------


@_figure
def training_curves(
    log: pd.DataFrame,
    columns: Sequence[str],
    smoothing: int = 20,
    titles: Mapping[str, str] | None = None,
    step: str = "step",
    hue: str | None = None,
    title: str | None = None,
) -> Figure:
    """One small chart per column against the step: each row faint, the mean of the last rows strong.

    Args:
        log: a training log; rows without a value in a column are left out of that column's chart.
        columns: what to draw.
        smoothing: rows per rolling mean, at most a fifth of the rows; 1 draws the rows alone.
        titles: column -> title with unit; by default :data:`TITLES`, else the column's name.
        step: the column with steps.
        hue: a column that splits the log into curves (seed, stage).
        title: a line above all charts.
    """
    _need(log, [step, *columns, *([hue] if hue else [])], "the training log")
    names = {**TITLES, **(titles or {})}
    across = min(3, len(columns))
    rows = -(-len(columns) // across)
    figure, axes = plt.subplots(rows, across, squeeze=False, figsize=(WIDTH, 2.3 * rows + 0.3), sharex=True)
    groups = [(str(key), group) for key, group in log.groupby(hue, sort=False)] if hue else [("", log)]
    for axis, column in zip(axes.flat, columns, strict=False):
        for (_, group), colour in zip(groups, _cycle(_COLOURS, len(groups)), strict=True):
            curve = group[[step, column]].dropna().sort_values(step)
            window = min(smoothing, len(curve) // 5)  # a mean over most of the log would hide the course
            if window > 1:
                axis.plot(curve[step], curve[column], color=colour, alpha=0.3, linewidth=1)
                axis.plot(curve[step], curve[column].rolling(window, min_periods=1).mean(), color=colour)
            else:
                axis.plot(curve[step], curve[column], color=colour, marker="o" if len(curve) < 40 else None)
        axis.set_title(textwrap.fill(names.get(column) or _log_title(column), 38))
        axis.set_xlabel("step")
        axis.tick_params(labelbottom=True)
    for axis in list(axes.flat)[len(columns) :]:
        axis.remove()
    if hue:
        handles = [
            Line2D([], [], color=colour, label=STAGES.get(key, key))
            for (key, _), colour in zip(groups, _cycle(_COLOURS, len(groups)), strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=hue)
    if title:
        figure.suptitle(title)
    return figure


def _log_title(column: str) -> str:
    """TRL logs each reward as "rewards/<function's name>/mean" and ".../std"."""
    part = re.fullmatch(r"rewards/(\w+)/(mean|std)", column)
    if part is None:
        return column
    name = part[1].replace("_", " ")
    return f"{name} (points)" if part[2] == "mean" else f"spread of the {name} (points)"


def _cycle(colours: Sequence[str], count: int) -> list[str]:
    return [colours[index % len(colours)] for index in range(count)]


# --- scores ---------------------------------------------------------------------------------------


@_figure
def stage_bars(
    scores: pd.DataFrame,
    title: str = "Balanced accuracy, stage by stage",
    ylabel: str = "balanced accuracy (%)",
    chance: float | None = 50,
    metric: str = "balanced_accuracy",
) -> Figure:
    """Bars with intervals per benchmark and stage, and apart from them the mean.

    Args:
        scores: columns stage, benchmark, value, low, high; rows whose benchmark is "mean" stand apart at the
            right, with their values written out. Stages and benchmarks come in the table's order.
        title: the figure's title.
        ylabel: the measure and its unit.
        chance: where a dotted line marks guessing; None for none.
        metric: which rows to draw, if the table (from ``scoring.score``) has a column metric.
    """
    _need(scores, ["stage", "benchmark", "value", "low", "high"], "scores")
    if "metric" in scores:
        scores = scores[scores["metric"] == metric]
    lines = {} if chance is None else {chance: "guessing"}
    return _grouped_bars(scores, "stage", title, ylabel, lines, _STAGE_COLOURS)


@_figure
def baseline_bars(
    scores: pd.DataFrame,
    title: str = "Simple predictors, without a language model",
    ylabel: str = "balanced accuracy (%)",
    limit: float = 60,
) -> Figure:
    """Bars per benchmark of predictors that a model must beat (always yes, file size, mean brightness …).

    A benchmark is fair if those that do not look for defects stay near guessing (50) and below ``limit``.

    Args:
        scores: columns baseline, benchmark, value, and if there are intervals low and high.
        title: the figure's title.
        ylabel: the measure and its unit.
        limit: where a dashed line marks what is still acceptable.
    """
    _need(scores, ["baseline", "benchmark", "value"], "baselines")
    return _grouped_bars(scores, "baseline", title, ylabel, {50: "guessing", limit: "limit"}, {})


@_figure
def stage_differences(
    rows: pd.DataFrame,
    title: str = "Paired differences, image by image",
    xlabel: str = "difference in balanced accuracy (points)",
) -> Figure:
    """Forest plot: a line per seed with its interval, the pooled one as a diamond; right of zero is a gain.

    Args:
        rows: columns seed (a number, or "pooled"), value, low, high; with a column comparison ("SC-GRPO −
            PA-SFT"), one block per comparison.
        title: the figure's title.
        xlabel: the measure and its unit.
    """
    _need(rows, ["seed", "value", "low", "high"], "differences")
    blocks = (
        [(str(key), block) for key, block in rows.groupby("comparison", sort=False)]
        if "comparison" in rows
        else [("", rows)]
    )
    figure, axis = plt.subplots(figsize=(WIDTH, 0.32 * (len(rows) + 1.4 * len(blocks)) + 1.2))
    place, ticks = 0.0, []
    right = float(max(rows["high"].max(), 0))
    for name, block in blocks:
        if name:
            axis.annotate(
                name,
                (0, place),
                (4, 0),
                ("axes fraction", "data"),
                "offset points",
                va="center",
                weight="bold",
            )
            place += 1
        for row in block.to_dict("records"):
            pooled = str(row["seed"]) == "pooled"
            colour = _COLOURS[1] if pooled else _COLOURS[0]
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=3 if pooled else 1.8)
            axis.plot(row["value"], place, "D" if pooled else "o", color=colour, markersize=8 if pooled else 6)
            ticks.append((place, "pooled" if pooled else f"seed {row['seed']}"))
            numbers = f"{row['value']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")
            axis.annotate(
                numbers,
                (1, place),
                (6, 0),
                ("axes fraction", "data"),
                "offset points",
                va="center",
                fontsize=8.5,
            )
            place += 1
        place += 0.4
    axis.axvline(0, color=_INK, linewidth=1)
    span = (right - min(float(rows["low"].min()), 0)) or 1.0  # all may be zero
    axis.set(xlabel=xlabel, title=title, ylim=(place - 0.6, -0.7))
    axis.set_xlim(min(float(rows["low"].min()), 0) - 0.05 * span, right + 0.05 * span)
    axis.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks])
    axis.grid(axis="y", visible=False)
    return figure


@_figure
def confusion_heatmaps(answers: pd.DataFrame, title: str = "Truth against answer") -> Figure:
    """One heat map per stage: truth (yes, no) x answer (yes, no, unparsed); counts, and shares of the row.

    Args:
        answers: judged predictions of all stages (``scoring.judge``) with a column stage: columns stage,
            label ("yes" or "no") and answer ("yes", "no"; None counts as unparsed). With a column count, each
            row stands for that many pictures.
        title: the figure's title.
    """
    _need(answers, ["stage", "label", "answer"], "answers")
    table = answers.assign(answer=[word if word in ("yes", "no") else "unparsed" for word in answers["answer"]])
    table["count"] = answers.get("count", 1)
    stages = list(dict.fromkeys(table["stage"]))
    across = min(4, len(stages))
    down = -(-len(stages) // across)
    size = (max(4.0, WIDTH * across / 4), 2.1 * down + 0.4)
    figure, axes = plt.subplots(down, across, squeeze=False, figsize=size)
    for position, (axis, stage) in enumerate(zip(axes.flat, stages, strict=False)):
        counts = (
            table[table["stage"] == stage]
            .pivot_table(index="label", columns="answer", values="count", aggfunc="sum")
            .reindex(index=["yes", "no"], columns=["yes", "no", "unparsed"])
            .fillna(0)
        )
        _heatmap(axis, counts, bar=False)
        axis.set(title=STAGES.get(str(stage), str(stage)), xlabel="answer")
        axis.set_ylabel("truth" if position % across == 0 else "")
    for axis in list(axes.flat)[len(stages) :]:
        axis.remove()
    figure.suptitle(title)
    return figure


@_figure
def type_confusion(answers: pd.DataFrame, title: str = "Type: truth against answer") -> Figure:
    """Heat map of true and predicted defect types, as shares of the true type's pictures.

    Args:
        answers: predictions (columns type and raw), or columns type and predicted. Rows without a true type
            (normal pictures) are left out; an answer without a type counts as "no type", a word outside the
            vocabulary and the true types as "other".
        title: the figure's title.
    """
    _need(answers, ["type", "predicted" if "predicted" in answers else "raw"], "answers")
    known = set(answers["type"].dropna())
    order = [name for name in DEFECT_TYPES if name in known] + sorted(known - set(DEFECT_TYPES))
    return _confusion(answers, "type", lambda word: category_of_words(word) or word, order, DEFECT_TYPES, title)


@_figure
def location_confusion(answers: pd.DataFrame, title: str = "Place: truth against answer") -> Figure:
    """Heat map of true and predicted grid cells, as shares of the true cell's pictures.

    Args:
        answers: predictions (columns location and raw), or columns location and predicted. Rows without a
            true cell are left out; an answer without a cell counts as "no location".
        title: the figure's title.
    """
    _need(answers, ["location", "predicted" if "predicted" in answers else "raw"], "answers")
    return _confusion(answers, "location", lambda word: cell_of_words(word) or word, list(CELLS), (), title)


@_figure
def severity_curve(
    scores: pd.DataFrame,
    title: str = "Defects found, from barely visible to glaring ones",
    xlabel: str = "severity (0 = barely visible, 1 = glaring)",
    ylabel: str = "defects found (%)",
) -> Figure:
    """Recall against severity: a line per stage through the bins, with intervals.

    Args:
        scores: columns severity (a bin's middle), value, low, high; stage if there are several. With a column
            n, the number of pictures per bin is written below the first stage's points.
        title: the figure's title.
        xlabel: the horizontal measure and its range.
        ylabel: the vertical measure and its unit.
    """
    _need(scores, ["severity", "value", "low", "high"], "severities")
    figure, axis = plt.subplots(figsize=(WIDTH * 0.7, 3.6))
    groups = (
        [(str(key), group) for key, group in scores.groupby("stage", sort=False)]
        if "stage" in scores
        else [("", scores)]
    )
    spacing = float(np.diff(np.unique(scores["severity"])).min()) if scores["severity"].nunique() > 1 else 1.0
    for index, (stage, group) in enumerate(groups):
        curve = group.sort_values("severity")
        colour = _STAGE_COLOURS.get(stage, _COLOURS[index % len(_COLOURS)])
        shifted = curve["severity"] + (index - (len(groups) - 1) / 2) * 0.06 * spacing  # intervals side by side
        axis.errorbar(
            shifted, curve["value"], _whiskers(curve), color=colour, marker="o", markersize=5, capsize=2,
            elinewidth=1, label=STAGES.get(stage, stage),
        )  # fmt: skip
    if "n" in scores:
        for row in groups[0][1].to_dict("records"):
            axis.annotate(
                f"n={row['n']:.0f}",
                (row["severity"], 0),
                (0, 3),
                "data",
                "offset points",
                ha="center",
                fontsize=7.5,
            )
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=(0, 102))
    if groups[0][0]:
        figure.legend(loc="outside right upper")
    return figure


@_figure
def variant_curve(
    table: pd.DataFrame,
    title: str,
    xlabel: str = "",
    ylabel: str = "balanced accuracy (%)",
    own: str | None = None,
) -> Figure:
    """A line through variants that lie in an order (grid sizes, shares of the data), with intervals.

    Args:
        table: columns variant (words, in the order to draw), value, low, high; value is written at each point.
        title: the figure's title.
        xlabel: what the variants are.
        ylabel: the measure and its unit.
        own: the variant that is the course's own setting; it is drawn as a diamond of another colour.
    """
    _need(table, ["variant", "value", "low", "high"], "variants")
    figure, axis = plt.subplots(figsize=(WIDTH * 0.7, 3.4))
    places = np.arange(len(table))
    axis.plot(places, table["value"], color=_COLOURS[0], linewidth=1.2, zorder=2)
    for place, row in zip(places, table.to_dict("records"), strict=True):
        chosen = row["variant"] == own
        colour = _COLOURS[1] if chosen else _COLOURS[0]
        interval = _whiskers(pd.DataFrame([row]))
        axis.errorbar(
            place, row["value"], interval, color=colour, marker="D" if chosen else "o", markersize=8 if chosen else 6,
            capsize=3, elinewidth=1.2, zorder=3, label="the course's setting" if chosen else None,
        )  # fmt: skip
        top = row["value"] if pd.isna(row["high"]) else row["high"]
        axis.annotate(f"{row['value']:.1f}", (place, top), (0, 4), "data", "offset points", ha="center", fontsize=8.5)
    axis.set_xticks(places, [str(name) for name in table["variant"]])
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(-0.5, len(table) - 0.5))
    axis.margins(y=0.15)
    axis.grid(axis="x", visible=False)
    if own in set(table["variant"]):
        figure.legend(loc="outside lower center")
    return figure


# --- lessons --------------------------------------------------------------------------------------
# Small charts of numbers that a notebook works out before the reader's eyes.


@_figure
def line_chart(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    panel: str | None = None,
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    zero: bool = False,
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """A line per value of ``hue``, side by side a chart per value of ``panel``; all share their axes.

    Args:
        table: one row per point.
        x: the column drawn to the right.
        y: the column drawn upwards.
        hue: splits a chart into lines, told apart by colour and dashes.
        panel: splits the figure into charts, each titled by its value.
        title: a line above all charts.
        xlabel: the measure and its unit; by default the column's name.
        ylabel: the same for ``y``.
        zero: mark the height 0.
        ylim: lower and upper end of ``y``.
    """
    _need(table, [x, y, *(name for name in (hue, panel) if name)], "points")
    panels = list(dict.fromkeys(table[panel])) if panel else [None]
    size = (WIDTH if len(panels) > 1 else WIDTH * 0.7, 3.3)
    figure, axes = plt.subplots(1, len(panels), squeeze=False, figsize=size, sharex=True, sharey=True)
    for axis, name in zip(axes.flat, panels, strict=True):
        rows = table if name is None else table[table[panel] == name]
        if zero:
            axis.axhline(0, color=_INK, linewidth=0.8)
        look: dict[str, Any] = {"style": hue, "palette": "colorblind"} if hue else {"color": _COLOURS[0]}
        marker = "o" if table[x].nunique() <= 12 else None
        sns.lineplot(rows, x=x, y=y, hue=hue, errorbar=None, marker=marker, ax=axis, **look)
        axis.set(title=name or "", xlabel=xlabel or x, ylabel=ylabel or y, ylim=ylim)
        if hue:
            handles, labels = axis.get_legend_handles_labels()
            axis.get_legend().remove()
    if hue:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    if title:
        figure.suptitle(title)
    return figure


@_figure
def value_bars(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    title: str | None = None,
    ylabel: str | None = None,
) -> Figure:
    """A bar per row in the table's order, or per ``x`` and ``hue``; many labels are turned upright."""
    _need(table, [x, y, *([hue] if hue else [])], "values")
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    names = list(dict.fromkeys(table[x])) if hue else list(table[x])
    places = {name: index for index, name in enumerate(names)}
    at = table[x].map(places) if hue else pd.Series(range(len(table)), index=table.index)
    keys = list(dict.fromkeys(table[hue])) if hue else [None]
    width = 0.8 / len(keys)
    for index, (key, colour) in enumerate(zip(keys, _cycle(_COLOURS, len(keys)), strict=True)):
        chosen = table[hue] == key if hue else pd.Series(True, index=table.index)
        shift = (index - (len(keys) - 1) / 2) * width
        label = STAGES.get(str(key), str(key)) if hue else None
        axis.bar(at[chosen] + shift, table.loc[chosen, y], width * 0.92, color=colour, label=label, zorder=2)
    upright = len(names) > 12
    labels = [str(name) if upright else textwrap.fill(str(name), int(110 / len(names))) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=90 if upright else 0, fontsize=7.5 if upright else 8.5)
    axis.axhline(0, color=_INK, linewidth=0.8, zorder=3)
    axis.set(title=title or "", ylabel=ylabel or y, xlim=(-0.6, len(names) - 0.4))
    axis.grid(axis="x", visible=False)
    if hue:
        figure.legend(loc="outside lower center", ncols=min(len(keys), 6))
    return figure


@_figure
def value_map(table: pd.DataFrame, title: str | None = None, label: str = "points", digits: int = 2) -> Figure:
    """A field per row and column, coloured by its value and written out."""
    _need(table, [], "values")
    longest = max(len(str(name)) for name in table.index)
    size = (min(WIDTH, 2.2 + 0.055 * longest + 0.75 * table.shape[1]), 1.2 + 0.34 * len(table))
    figure, axis = plt.subplots(figsize=size)
    sns.heatmap(
        table.astype(float), ax=axis, annot=True, fmt=f".{digits}f", cmap="Blues", vmin=0, linewidths=1,
        annot_kws={"fontsize": 8.5}, cbar_kws={"label": label},
    )  # fmt: skip
    axis.set(title=title or "", xlabel="", ylabel="")
    axis.tick_params(axis="y", rotation=0, length=0)
    turned = max(len(str(name)) for name in table.columns) > 12
    names = [textwrap.fill(str(name), 16) for name in table.columns]
    axis.set_xticks(axis.get_xticks(), names, rotation=40 if turned else 0, ha="right" if turned else "center")
    axis.tick_params(axis="x", length=0)
    return figure


def _grouped_bars(
    scores: pd.DataFrame,
    hue: str,
    title: str,
    ylabel: str,
    lines: Mapping[float, str],
    colours: Mapping[str, str],
) -> Figure:
    """Bars per benchmark, coloured by ``hue``; the group "mean" stands apart, its values written."""
    benchmarks = [name for name in dict.fromkeys(scores["benchmark"]) if name != MEAN]
    if MEAN in set(scores["benchmark"]):
        benchmarks.append(MEAN)
    keys = list(dict.fromkeys(scores[hue]))
    width = 0.8 / len(keys)
    places = np.arange(len(benchmarks), dtype=float)
    if len(benchmarks) > 1 and benchmarks[-1] == MEAN:
        places[-1] += 0.5
    place = dict(zip(benchmarks, places, strict=True))
    figure, axis = plt.subplots(figsize=(WIDTH, 3.9))
    for index, key in enumerate(keys):
        rows = scores[scores[hue] == key]
        at = rows["benchmark"].map(place) + (index - (len(keys) - 1) / 2) * width
        colour = colours.get(str(key), _COLOURS[index % len(_COLOURS)])
        axis.bar(at, rows["value"], width * 0.92, color=colour, label=STAGES.get(str(key), str(key)), zorder=2)
        tops = rows["value"]
        if {"low", "high"} <= set(rows.columns):
            axis.errorbar(
                at, rows["value"], _whiskers(rows), fmt="none", ecolor=_INK, elinewidth=1, capsize=2, zorder=3
            )
            tops = rows["high"].fillna(rows["value"])
        for x, top, value, name in zip(at, tops, rows["value"], rows["benchmark"], strict=True):
            if name == MEAN:
                axis.annotate(f"{value:.0f}", (x, top), (0, 2), "data", "offset points", ha="center", fontsize=8)
    for height, name in lines.items():
        axis.axhline(height, color=_INK, linewidth=1, linestyle=":" if height == 50 else "--", zorder=4)
        axis.annotate(name, (1, height), (4, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8)
    axis.set_xticks(places, [textwrap.fill(str(name).replace("_", " "), 14) for name in benchmarks])
    axis.set(title=title, ylabel=ylabel, ylim=(0, 105), xlim=(-0.6, places[-1] + 0.6))
    axis.set_yticks(range(0, 101, 20))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=min(len(keys), 6))
    return figure


def _whiskers(rows: pd.DataFrame) -> np.ndarray:
    """(2, n) lengths below and above the value; never below zero, which rounding may ask for."""
    return np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]], dtype=float).clip(min=0)


def _confusion(
    answers: pd.DataFrame,
    tag: str,
    read: Callable[[str], str],
    order: Sequence[str],
    vocabulary: Iterable[str],
    title: str,
) -> Figure:
    """Cross table of the column ``tag`` with what the answers say; unknown words are put together."""
    answers = answers[answers[tag].map(_known)]
    if "predicted" in answers:
        said = list(answers["predicted"])
    else:
        said = [getattr(parse_answer(str(raw)), tag) for raw in answers["raw"]]
    words = [read(word) if _known(word) else f"no {tag}" for word in said]
    beside = [name for name in vocabulary if name not in order and name in words]
    known = {*order, *beside, f"no {tag}"}
    words = [word if word in known else "other" for word in words]
    columns = [*order, *beside, *(name for name in ("other", f"no {tag}") if name in words)]
    counts = pd.crosstab(answers[tag].to_numpy(), np.array(words, dtype=object))
    counts = counts.reindex(index=list(order), columns=columns, fill_value=0)
    size = (min(WIDTH, 3.6 + 0.62 * len(columns)), 1.9 + 0.42 * len(order))
    figure, axis = plt.subplots(figsize=size)
    _heatmap(axis, counts, bar=True)
    axis.set(title=title, xlabel=f"{tag} in the answer", ylabel=f"true {tag}")
    names = [textwrap.fill(name, 16) for name in columns]
    axis.set_xticks(axis.get_xticks(), names, rotation=40, ha="right", rotation_mode="anchor")
    return figure


def _heatmap(axis: Axes, counts: pd.DataFrame, bar: bool) -> None:
    """Coloured by the share of the row; each field says count and share, an empty row nothing."""
    totals = counts.sum(axis=1)
    shares = counts.div(totals.where(totals > 0), axis=0).fillna(0) * 100
    text = np.array(
        [[f"{count:.0f}" if bar else f"{count:.0f}\n{share:.0f} %" for count, share in zip(*row, strict=True)]
         for row in zip(counts.to_numpy(), shares.to_numpy(), strict=True)]
    )  # fmt: skip
    sns.heatmap(
        shares, ax=axis, annot=text, fmt="", cmap="Blues", vmin=0, vmax=100, linewidths=1, cbar=bar,
        annot_kws={"fontsize": 8.5}, cbar_kws={"label": "share of the row (%)"} if bar else None,
    )  # fmt: skip
    axis.tick_params(axis="y", rotation=0)
    axis.tick_params(length=0)
