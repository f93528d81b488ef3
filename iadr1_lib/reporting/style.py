"""The look of every figure: size, fonts, colours that colour-blind readers can tell apart, and its text for those who
cannot see it.

A drawing function under `styled` returns a matplotlib Figure that is already closed in pyplot: a notebook cell that
ends with the call shows it once, and a loop over hundreds of figures keeps none in memory.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

WIDTH = 9.0  # inches: a notebook's column
COLOURS: list[str] = sns.color_palette("colorblind").as_hex()
INK = "#333333"
STAGE_COLOURS = {"base": "#8c8c8c", "PA-SFT": COLOURS[0], "SC-GRPO": COLOURS[1], "control": COLOURS[2]}

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
    "text.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Give a drawing function the course's style, and close in pyplot whatever it opened, also after an error."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        before = set(plt.get_fignums())
        with plt.rc_context(_STYLE):  # type: ignore[arg-type]  # matplotlib lists every key
            try:
                return draw(*args, **kwargs)
            finally:
                for number in set(plt.get_fignums()) - before:
                    plt.close(number)

    return drawn


def alternative_text(figure: Figure) -> str:
    """What a figure says to a reader who cannot see it: its titles, axes and legend."""
    parts = [figure.get_suptitle()]
    for axis in figure.axes:
        parts += [axis.get_title(loc=where) for where in ("left", "center", "right")]
        parts.append(" against ".join(label for label in (axis.get_ylabel(), axis.get_xlabel()) if label))
    for legend in [*figure.legends, *filter(None, (axis.get_legend() for axis in figure.axes))]:
        parts.append("legend: " + ", ".join(text.get_text() for text in legend.get_texts()))
    words = dict.fromkeys(" ".join(part.split()) for part in parts if part)
    return textwrap.shorten("; ".join(words), 600, placeholder=" …") or "figure without a title"


# IPython asks each object that it shows for this method: here no picture, since others make it, but the text to it.
Description = tuple[dict[str, Any], dict[str, Any]]


def _description(figure: Figure, **_: object) -> Description:
    return {}, {"image/png": {"alt": alternative_text(figure)}}


Figure._repr_mimebundle_ = _description  # type: ignore[attr-defined]  # for figures that notebooks draw themselves, too


def described(picture: Image.Image, text: str) -> Image.Image:
    """The picture itself, which a notebook then shows with this alternative text."""

    def description(**_: object) -> Description:
        return {}, {"image/png": {"alt": text}}

    picture._repr_mimebundle_ = description  # type: ignore[attr-defined]
    return picture
