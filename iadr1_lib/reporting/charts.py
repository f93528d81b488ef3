"""Charts of training logs, scores and what a notebook works out.

Shares are in percent, 0 to 100. Columns ``low`` and ``high`` are the ends of an interval, in the unit of ``value``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iadr1_lib.evaluation import MEAN, interval_text
from iadr1_lib.reporting.results import STAGES
from iadr1_lib.reporting.style import COLOURS, INK, STAGE_COLOURS, WIDTH, styled

# Titles with units for the columns that TRL's trainers log; training_curves looks here first.
TITLES = {
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


def _groups(table: pd.DataFrame, hue: str | None) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) for each value of ``hue`` in the table's order; all rows with the title "" without it."""
    if hue is None:
        return [("", table)]
    return [(STAGES.get(str(key), str(key)), rows) for key, rows in table.groupby(hue, sort=False)]


def _colour(index: int, title: str = "") -> str:
    """A stage's own colour, for others the next one."""
    return STAGE_COLOURS.get(title, COLOURS[index % len(COLOURS)])


def _whiskers(rows: pd.DataFrame) -> np.ndarray:
    """(2, n) lengths below and above the value; never below zero, which rounding may ask for."""
    return np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]], dtype=float).clip(min=0)


def _write(
    axis: Axes, text: str, at: tuple[Any, Any], offset: tuple[int, int], coordinates: Any = "data", **look: Any
) -> None:
    """Text beside a point, ``offset`` points away from it."""
    axis.annotate(text, at, offset, coordinates, "offset points", **look)


@styled
def training_curves(
    log: pd.DataFrame,
    columns: Sequence[str],
    smoothing: int = 20,
    titles: Mapping[str, str] | None = None,
    hue: str | None = None,
    title: str | None = None,
) -> Figure:
    """One small chart per column against the step: each row faint, the mean of the last rows strong.

    Args:
        log: a training log; rows without a value in a column are left out of that column's chart.
        columns: what to draw.
        smoothing: rows per rolling mean, at most a fifth of the rows; 1 draws the rows alone.
        titles: column -> title with unit; by default `TITLES`, else the column's name.
        hue: a column that splits the log into curves (seed, stage).
        title: a line above all charts.
    """
    names = {**TITLES, **(titles or {})}
    across = min(3, len(columns))
    rows = -(-len(columns) // across)
    figure, axes = plt.subplots(rows, across, squeeze=False, figsize=(WIDTH, 2.3 * rows + 0.3), sharex=True)
    groups = _groups(log, hue)
    for axis, column in zip(axes.flat, columns, strict=False):
        for index, (_, group) in enumerate(groups):
            curve = group[["step", column]].dropna().sort_values("step")
            colour, window = _colour(index), min(smoothing, len(curve) // 5)  # a longer mean would hide the course
            if window > 1:
                axis.plot(curve["step"], curve[column], color=colour, alpha=0.3, linewidth=1)
                axis.plot(curve["step"], curve[column].rolling(window, min_periods=1).mean(), color=colour)
            else:
                axis.plot(curve["step"], curve[column], color=colour, marker="o" if len(curve) < 40 else None)
        axis.set(title=textwrap.fill(names.get(column, column), 38), xlabel="step")
        axis.tick_params(labelbottom=True)
    for axis in list(axes.flat)[len(columns) :]:
        axis.remove()
    if hue:
        handles = [Line2D([], [], color=_colour(index), label=name) for index, (name, _) in enumerate(groups)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=hue)
    if title:
        figure.suptitle(title)
    return figure


@styled
def value_bars(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    title: str = "",
    ylabel: str | None = None,
    lines: Mapping[float, str] | None = None,
) -> Figure:
    """A bar per row in the table's order, or per ``x`` and ``hue``; many labels are turned upright.

    Bars have intervals if the table has columns low and high.

    Args:
        table: one row per bar.
        x: the column of labels below the bars.
        y: the column of heights.
        hue: splits each label's bar into several, told apart by colour.
        title: the figure's title.
        ylabel: the measure and its unit; by default the column's name.
        lines: makes a chart of percentages, from 0 to 100, with these lines across all bars (height -> label); the
            bars of "mean" stand apart with their values written.
    """
    table = table.reset_index(drop=True)  # tables that were put together repeat their index
    names = list(table[x].drop_duplicates().sort_values(key=lambda name: name == MEAN, kind="stable"))
    if not hue:
        names = list(table[x])  # a repeated label has a bar of its own
    places = np.arange(len(names), dtype=float)
    if lines and names[-1] == MEAN and len(names) > 1:
        places[-1] += 0.5
    at = table[x].map(dict(zip(names, places, strict=True))) if hue else pd.Series(places, index=table.index)
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2 if lines is None else 3.9))
    groups = _groups(table, hue)
    width = 0.8 / len(groups)
    for index, (name, rows) in enumerate(groups):
        where = at[rows.index] + (index - (len(groups) - 1) / 2) * width
        axis.bar(where, rows[y], width * 0.92, color=_colour(index, name), label=name, zorder=2)
        if "low" in rows:
            axis.errorbar(where, rows[y], _whiskers(rows), fmt="none", ecolor=INK, elinewidth=1, capsize=2, zorder=3)
        if lines is not None:
            tops = rows["high"].fillna(rows[y]) if "high" in rows else rows[y]
            for spot, top, value in zip(where, tops, rows[y].where(rows[x] == MEAN), strict=True):
                if not np.isnan(value):
                    _write(axis, f"{value:.0f}", (spot, top), (0, 2), ha="center", fontsize=8)
    for height, name in (lines or {}).items():
        axis.axhline(height, color=INK, linewidth=1, linestyle=":" if height == 50 else "--", zorder=4)
        _write(axis, name, (1, height), (4, 0), ("axes fraction", "data"), va="center", fontsize=8)
    upright = len(names) > 12
    wrap = 200 if upright else 110 // len(names)
    labels = [textwrap.fill(str(name).replace("_", " ") if lines is not None else str(name), wrap) for name in names]
    axis.set_xticks(places, labels, rotation=90 if upright else 0, fontsize=7.5 if upright else 8.5)
    axis.set(title=title, ylabel=ylabel or y, xlim=(-0.6, places[-1] + 0.6))
    if lines is None:
        axis.axhline(0, color=INK, linewidth=0.8, zorder=3)
    else:
        axis.set(ylim=(0, 105), yticks=range(0, 101, 20))
    axis.grid(axis="x", visible=False)
    if hue:
        figure.legend(loc="outside lower center", ncols=min(len(groups), 6))
    return figure


def stage_bars(
    scores: pd.DataFrame,
    title: str = "Balanced accuracy, stage by stage",
    ylabel: str = "balanced accuracy (%)",
    chance: float | None = 50,
    metric: str = "balanced_accuracy",
) -> Figure:
    """Bars with intervals per benchmark and stage, and apart from them the mean.

    Args:
        scores: columns stage, benchmark, value, low, high, in the order of the chart.
        title: the figure's title.
        ylabel: the measure and its unit.
        chance: where a dotted line marks guessing; None for none.
        metric: which rows to draw, if the table (from `evaluation.score`) has a column metric.
    """
    if "metric" in scores:
        scores = scores[scores["metric"] == metric]
    lines = {} if chance is None else {chance: "guessing"}
    return value_bars(scores, "benchmark", "value", "stage", title, ylabel, lines)


def baseline_bars(scores: pd.DataFrame, title: str = "Simple predictors, without a language model") -> Figure:
    """Bars per benchmark of predictors that a model must beat (always yes, file size, mean brightness …).

    A benchmark is fair if those that do not look for defects stay near guessing (50) and below 60. The table has
    columns baseline, benchmark, value, and if there are intervals low and high.
    """
    lines = {50.0: "guessing", 60.0: "limit"}
    return value_bars(scores, "benchmark", "value", "baseline", title, "balanced accuracy (%)", lines)


@styled
def stage_differences(
    rows: pd.DataFrame,
    title: str = "Paired differences, image by image",
    xlabel: str = "difference in balanced accuracy (points)",
) -> Figure:
    """Forest plot: a line per seed with its interval, the pooled one as a diamond; right of zero is a gain.

    Args:
        rows: columns comparison ("SC-GRPO − PA-SFT"), which makes blocks, seed (a number, or "pooled"), value, low,
            high.
        title: the figure's title.
        xlabel: the measure and its unit.
    """
    blocks = _groups(rows, "comparison")
    figure, axis = plt.subplots(figsize=(WIDTH, 0.32 * (len(rows) + 1.4 * len(blocks)) + 1.2))
    beside = ("axes fraction", "data")
    place, ticks = 0.0, {}
    for name, block in blocks:
        _write(axis, name, (0, place), (4, 0), beside, va="center", weight="bold")
        for row in block.to_dict("records"):
            place += 1
            pooled = str(row["seed"]) == "pooled"
            colour, mark, size = (COLOURS[1], "D", 8) if pooled else (COLOURS[0], "o", 6)
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=3 if pooled else 1.8)
            axis.plot(row["value"], place, mark, color=colour, markersize=size)
            ticks[place] = "pooled" if pooled else f"seed {row['seed']}"
            _write(axis, interval_text(row, signed=True), (1, place), (6, 0), beside, va="center", fontsize=8.5)
        place += 1.4
    axis.axvline(0, color=INK, linewidth=1)
    left, right = min(float(rows["low"].min()), 0), max(float(rows["high"].max()), 0)
    room = 0.05 * ((right - left) or 1.0)  # all may be zero
    axis.set(xlabel=xlabel, title=title, xlim=(left - room, right + room), ylim=(place - 0.6, -0.7))
    axis.set_yticks(list(ticks), list(ticks.values()))
    axis.grid(axis="y", visible=False)
    return figure


@styled
def interval_chart(
    table: pd.DataFrame,
    x: str,
    title: str,
    xlabel: str = "",
    ylabel: str = "balanced accuracy (%)",
    hue: str | None = None,
    own: str | None = None,
) -> Figure:
    """Points with intervals, joined by a line: along a number, or along words in the table's order.

    Args:
        table: columns x, value, low, high. A column n (pictures per point) is written below the points of the first
            line, on an axis from 0 to 100.
        x: the column drawn to the right.
        title: the figure's title.
        xlabel: what ``x`` is.
        ylabel: the measure and its unit.
        hue: splits the table into lines, their intervals side by side; without it each value is written.
        own: the ``x`` that is the course's own setting; it is drawn as a diamond of another colour.
    """
    words = not pd.api.types.is_numeric_dtype(table[x])
    names = list(dict.fromkeys(table[x]))
    table = table.assign(at=table[x].map(names.index) if words else table[x]).sort_values("at", kind="stable")
    space = float(np.diff(np.unique(table["at"])).min()) if table["at"].nunique() > 1 else 1.0
    figure, axis = plt.subplots(figsize=(WIDTH * 0.7, 3.5))
    chosen = table[x] == own
    look: dict[str, Any] = {"capsize": 3, "elinewidth": 1.2}
    if chosen.any():
        mark: dict[str, Any] = {"color": COLOURS[1], "marker": "D", "markersize": 8, "linestyle": "none", "zorder": 3}
        rows = table[chosen]
        axis.errorbar(rows["at"], rows["value"], _whiskers(rows), label="the course's setting", **mark, **look)
    groups = _groups(table.assign(low=table["low"].mask(chosen), high=table["high"].mask(chosen)), hue)
    for index, (name, rows) in enumerate(groups):
        at = rows["at"] + (index - (len(groups) - 1) / 2) * 0.06 * space
        label = name or "_without a name in the legend"
        axis.errorbar(at, rows["value"], _whiskers(rows), color=_colour(index, name), marker="o", label=label, **look)
    for row in [] if hue else table.to_dict("records"):
        top = row["value"] if pd.isna(row["high"]) else row["high"]
        _write(axis, f"{row['value']:.1f}", (row["at"], top), (0, 4), ha="center", fontsize=8.5)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.margins(y=0.15)
    if "n" in table:
        axis.set_ylim(0, 102)
        for row in groups[0][1].to_dict("records"):
            _write(axis, f"n={row['n']:.0f}", (row["at"], 0), (0, 3), ha="center", fontsize=7.5)
    if words:
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.grid(axis="x", visible=False)
    if hue or chosen.any():
        figure.legend(loc="outside right upper" if hue else "outside lower center")
    return figure


@styled
def line_chart(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
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
    panels = _groups(table, panel)
    size = (WIDTH if len(panels) > 1 else WIDTH * 0.7, 3.3)
    figure, axes = plt.subplots(1, len(panels), squeeze=False, figsize=size, sharex=True, sharey=True)
    marker = "o" if table[x].nunique() <= 12 else None
    for axis, (name, rows) in zip(axes.flat, panels, strict=True):
        if zero:
            axis.axhline(0, color=INK, linewidth=0.8)
        sns.lineplot(rows, x=x, y=y, hue=hue, style=hue, palette="colorblind", errorbar=None, marker=marker, ax=axis)
        axis.set(title=name, xlabel=xlabel or x, ylabel=ylabel or y, ylim=ylim)
        handles, labels = axis.get_legend_handles_labels()
        axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    if title:
        figure.suptitle(title)
    return figure


@styled
def confusion_heatmaps(answers: pd.DataFrame) -> Figure:
    """One heat map per stage: truth (yes, no) x answer (yes, no, unparsed); counts, and shares of the row.

    Args:
        answers: judged predictions of all stages (`evaluation.judge`) with a column stage: columns stage,
            label ("yes" or "no") and answer ("yes", "no"; None counts as unparsed).
    """
    stages = _groups(answers, "stage")
    size = (max(4.0, WIDTH * len(stages) / 4), 2.5)
    figure, axes = plt.subplots(1, len(stages), squeeze=False, figsize=size)
    for axis, (name, rows) in zip(axes.flat, stages, strict=True):
        words = rows["answer"].where(rows["answer"].isin(["yes", "no"]), "unparsed")
        counts = pd.crosstab(rows["label"], words)
        counts = counts.reindex(index=["yes", "no"], columns=["yes", "no", "unparsed"], fill_value=0)
        shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0) * 100
        text = counts.astype(str) + "\n" + shares.map(lambda share: f"{share:.0f} %")
        _heatmap(axis, shares, annot=text, fmt="", vmax=100, cbar=False)
        axis.set(title=name, xlabel="answer", ylabel="truth" if axis is axes[0, 0] else "")
    figure.suptitle("Truth against answer")
    return figure


@styled
def value_map(table: pd.DataFrame, title: str, label: str = "points") -> Figure:
    """A field per row and column, coloured by its value and written out."""
    longest = max(len(str(name)) for name in table.index)
    size = (min(WIDTH, 2.2 + 0.055 * longest + 0.75 * table.shape[1]), 1.2 + 0.34 * len(table))
    figure, axis = plt.subplots(figsize=size)
    _heatmap(axis, table.astype(float), annot=True, fmt=".2f", cbar_kws={"label": label})
    axis.set(title=title, xlabel="", ylabel="")
    turned = max(len(str(name)) for name in table.columns) > 12
    names = [textwrap.fill(str(name), 16) for name in table.columns]
    axis.set_xticks(axis.get_xticks(), names, rotation=40 if turned else 0, ha="right" if turned else "center")
    return figure


def _heatmap(axis: Axes, values: pd.DataFrame, **look: Any) -> None:
    sns.heatmap(values, ax=axis, cmap="Blues", vmin=0, linewidths=1, annot_kws={"fontsize": 8.5}, **look)
    axis.tick_params(axis="y", rotation=0)
    axis.tick_params(length=0)
