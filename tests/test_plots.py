"""Every figure of iadr1_lib.reporting: it shows what it was given, and is closed afterwards."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from PIL import Image

from iadr1_lib import reporting
from iadr1_lib.answer import CELLS, DEFECT_TYPES, build_answer, cell_box, cell_of_point
from iadr1_lib.errors import UserError
from iadr1_lib.records import Record, Sample
from iadr1_lib.reporting import style

matplotlib.use("agg")
import matplotlib.pyplot as plt

STAGES = ("base", "pa_sft", "sc_grpo")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    plt.close("all")
    before = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before


def render(figure: Figure) -> bytes:
    """Draw it in full: many mistakes show only then. The width is a notebook's or less."""
    assert isinstance(figure, Figure) and figure.get_size_inches()[0] <= style.WIDTH + 0.01
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    return file.getvalue()


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two good and three defective pictures of several sizes, drawn at random."""
    rows = []
    for index, size in enumerate([(40, 30), (64, 64), (20, 90), (700, 500), (40, 30)]):
        image, mask, bad = tmp_path / f"{index}.png", tmp_path / f"{index}_mask.png", index > 1
        Image.fromarray(RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(image)
        marked = Image.new("L", size)
        marked.paste(255, (0, 0, size[0] // 5, size[1] // 5))
        marked.save(mask)
        truth = {"mask": str(mask), "type": DEFECT_TYPES[index], "location": "top left"}
        told = {"label": "yes", **truth} if bad else {"label": "no", **dict.fromkeys(truth)}
        place = {"category": "part", "benchmark": "drawn", "split": "test", "source": "test"}
        rows.append(Sample(image=str(image), **told, **place))
    return rows


@pytest.fixture
def predictions(samples: list[Sample]) -> pd.DataFrame:
    raws = [
        build_answer("All is even, for $5 or 6$.", "no"),
        build_answer("A line.", "yes", "top", "scratch"),
        build_answer("A dark spot at the top left. " * 30, "yes", "top left", "hole"),
        "I cannot tell.",
        "Yes.",
    ]
    return pd.DataFrame([vars(sample) for sample in samples]).assign(raw=raws)


def scores(key: str, names: tuple[str, ...] = STAGES) -> pd.DataFrame:
    rows = [(name, benchmark, 60.0, 55.0, 64.0) for name in names for benchmark in ("first_one", "second", "mean")]
    return pd.DataFrame(rows, columns=[key, "benchmark", "value", "low", "high"])


# --- pictures ------------------------------------------------------------------------------------


def test_sample_sheet_marks_defective_pictures(samples: list[Sample]) -> None:
    figure = reporting.sample_sheet(samples, columns=3, title="Five")
    render(figure)
    pictures = [axis for axis in figure.axes if axis.images]
    assert [(bool(axis.patches), bool(axis.collections)) for axis in pictures] == [(False,) * 2] * 2 + [(True,) * 2] * 3
    assert {"good", "top left", "Five"} <= set(words(figure).split("\n"))
    assert legend(figure) == ["true cell", "outline of the mask"]
    assert max(pictures[3].images[0].get_array().shape[:2]) <= 320, "large pictures are shown small"
    assert not reporting.sample_sheet(samples[:1]).legends


def test_answer_sheet_shows_right_and_wrong_answers_with_both_cells(predictions: pd.DataFrame) -> None:
    figure = reporting.answer_sheet(predictions, n_right=3, n_wrong=2, title="Some")
    render(figure)
    pictures = [axis for axis in figure.axes if axis.images]
    titles = [axis.get_title(loc="left").split("\n")[0] for axis in pictures]
    assert sorted(titles) == ["right: No", "right: Yes", "right: Yes", "wrong: Yes", "wrong: not readable"]
    frames = {axis.get_title(loc="left").replace("\n", " "): len(axis.patches) for axis in pictures}
    assert frames["right: No truth: good"] == 0
    assert frames["wrong: Yes truth: good"] == 1  # the predicted cell alone
    assert max(frames.values()) == 2
    assert "cannot tell" in words(figure)
    few = reporting.answer_sheet(predictions.head(1), n_right=4, n_wrong=4)
    assert sum(bool(axis.images) for axis in few.axes) == 1, "it takes what there is"
    assert len({render(reporting.answer_sheet(predictions, 1, 1, seed=3)) for _ in range(2)}) == 1


def test_record_gallery_tells_accepted_from_rejected(predictions: pd.DataFrame) -> None:
    image = str(predictions["image"].iloc[0])
    sound = Record(image, "yes", "top", "hole", "bolt", "At the top there is a hole.")
    plain = Record(image, "no", None, None, "bolt", "Nothing stands out.")
    figure = reporting.record_gallery([(sound, ""), (plain, "say what was looked at")])
    render(figure)
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.images]
    assert titles == ["accepted: hole, top", "rejected: normal\nsay what was looked at"]


def test_an_empty_sheet_is_refused_and_a_figure_that_fails_is_closed(
    samples: list[Sample], predictions: pd.DataFrame
) -> None:
    Path(samples[1].image).unlink()
    for draw in (
        lambda: reporting.sample_sheet([]),
        lambda: reporting.record_gallery([]),
        lambda: reporting.answer_sheet(predictions, 0, 0),
        lambda: reporting.sample_sheet(samples),
    ):
        with pytest.raises(UserError):
            draw()


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (300, 200), (1000, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
def test_mark_cell_takes_any_size_and_mode(size: tuple[int, int], mode: str) -> None:
    image = Image.new(mode, size)
    before = image.tobytes()
    marked = reporting.mark_cell(image, "bottom right", "Yes: scratch, bottom right")
    assert marked.mode == "RGB" and marked.width >= size[0] and marked.height > size[1]
    assert image.tobytes() == before
    bare = reporting.mark_cell(image, None)
    assert bare.width * size[1] == bare.height * size[0]  # the same shape
    assert not np.asarray(bare.convert("L")).any() or mode == "CMYK"


@pytest.mark.parametrize("cell", CELLS)
def test_mark_cell_frames_the_cell(cell: str) -> None:
    marked = np.asarray(reporting.mark_cell(Image.new("RGB", (600, 450)), cell), dtype=int)
    coloured = (marked.max(axis=2) - marked.min(axis=2)) > 50  # the grid is grey, the frame is not
    rows, columns = np.nonzero(coloured)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == cell_box(cell, 600, 450)
    assert cell_of_point(columns.mean(), rows.mean(), 600, 450) == cell


def test_mark_cell_refuses_an_unknown_cell() -> None:
    with pytest.raises(ValueError):
        reporting.mark_cell(Image.new("RGB", (9, 9)), "nowhere")


def test_long_text_is_wrapped_into_the_picture() -> None:
    short, long = (reporting.mark_cell(Image.new("RGB", (400, 300)), "top", text) for text in ("Yes", "word " * 200))
    assert short.width == long.width == 400 and long.height > short.height
    assert (np.asarray(long)[300:, -3:] == 255).all(), "nothing runs over the edge"


# --- charts --------------------------------------------------------------------------------------


def test_training_curves_smooth_what_is_long_enough() -> None:
    steps = np.arange(60)
    log = pd.DataFrame({"step": steps, "reward": RNG.normal(size=60), "kl": RNG.random(60), "other": steps})
    log["dev_score"] = np.where(steps % 20 == 0, 70.0, np.nan)
    figure = reporting.training_curves(
        log, ["reward", "kl", "dev_score", "other"], smoothing=5, titles={"kl": "distance"}
    )
    render(figure)
    assert [len(axis.lines) for axis in figure.axes] == [2, 2, 1, 2]  # three dev scores are too few to smooth
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["total reward (points)", "distance", "score on the dev families (%)", "other"]
    assert all(axis.get_xlabel() == "step" for axis in figure.axes)
    raw, smooth = (np.asarray(line.get_ydata()) for line in figure.axes[0].lines)
    np.testing.assert_allclose(raw, log["reward"])
    np.testing.assert_allclose(smooth[-1], log["reward"].tail(5).mean())
    both = pd.concat([log.assign(seed=1), log.assign(seed=2)])
    figure = reporting.training_curves(both, ["reward", "kl"], smoothing=1, hue="seed", title="Two seeds")
    render(figure)
    assert [len(axis.lines) for axis in figure.axes] == [2, 2] and legend(figure) == ["1", "2"]


def test_stage_bars_show_one_metric() -> None:
    table = scores("stage")
    render(reporting.stage_bars(table))
    metrics = [table.assign(metric="balanced_accuracy"), table.assign(metric="location", value=np.nan)]
    figure = reporting.stage_bars(pd.concat(metrics))
    (axis,) = figure.axes
    assert [round(bar.get_height()) for bar in axis.patches] == [60] * 9
    assert axis.get_ylim()[0] == 0 and "%" in axis.get_ylabel()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["first one", "second", "mean"]
    assert legend(figure) == ["base", "PA-SFT", "SC-GRPO"]
    render(reporting.stage_bars(pd.concat(metrics), metric="location", chance=None))


def test_baseline_bars_show_guessing_and_the_limit_with_or_without_intervals() -> None:
    for table in (scores("baseline", ("always yes", "file size")), scores("baseline").drop(columns=["low", "high"])):
        figure = reporting.baseline_bars(table)
        render(figure)
        assert {50, 60} <= {line.get_ydata()[0] for line in figure.axes[0].lines}


def test_stage_differences() -> None:
    rows = [
        {"comparison": name, "seed": seed, "value": 2.0, "low": -1.0, "high": 4.0}
        for name in ("SC-GRPO − PA-SFT", "SC-GRPO − control")
        for seed in (0, 1, 2, "pooled")
    ]
    figure = reporting.stage_differences(pd.DataFrame(rows))
    render(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["seed 0", "seed 1", "seed 2", "pooled"] * 2
    assert "+2.0 [−1.0, +4.0]" in words(figure) and "SC-GRPO − control" in words(figure)
    assert figure.axes[0].get_xlim()[0] < 0


def test_confusion_heatmaps_count_each_answer() -> None:
    rows = [("base", "yes", "yes")] * 3 + [("base", "yes", None)] + [("base", "no", "no")] * 2
    table = pd.DataFrame([*rows, ("sc_grpo", "no", "yes")], columns=["stage", "label", "answer"])
    figure = reporting.confusion_heatmaps(table)
    render(figure)
    assert [axis.get_title() for axis in figure.axes] == ["base", "SC-GRPO"]
    fields = [text.get_text() for text in figure.axes[0].texts]
    assert fields == ["3\n75 %", "0\n0 %", "1\n25 %", "0\n0 %", "2\n100 %", "0\n0 %"]


def test_interval_chart_of_stages_along_a_number() -> None:
    rows = [(stage, severity, 50.0, 40.0, 60.0, 12) for stage in STAGES for severity in (0.1, 0.5, 0.9)]
    table = pd.DataFrame(rows, columns=["stage", "severity", "value", "low", "high", "n"])
    figure = reporting.interval_chart(table, "severity", "Defects found", hue="stage")
    render(figure)
    assert figure.axes[0].get_ylim() == (0, 102) and words(figure).count("n=12") == 3
    assert legend(figure) == ["base", "PA-SFT", "SC-GRPO"]
    lines = [line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert len({tuple(line) for line in lines}) == 3, "intervals of several stages lie side by side"


def test_interval_chart_keeps_the_order_of_words_and_marks_the_course_s_setting() -> None:
    table = pd.DataFrame({"variant": ["1×1", "3×3", "5×5"], "value": [70.0, 80.0, 75.0]})
    table["low"], table["high"] = table["value"] - 2, [71.0, 83.0, np.nan]
    figure = reporting.interval_chart(table, "variant", "Grid", "grid", own="3×3")
    render(figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1×1", "3×3", "5×5"]
    assert {"70.0", "80.0", "75.0"} <= set(words(figure).split("\n")) and len(figure.legends) == 1
    (mark,) = (line for line in axis.lines if line.get_marker() == "D")
    assert list(mark.get_xdata()) == [1] and list(mark.get_ydata()) == [80.0]
    assert not reporting.interval_chart(table, "variant", "Grid").legends


POINTS = pd.DataFrame({"x": [0, 1, 0, 1], "y": [1.0, 2.0, 3.0, -1.0], "kind": list("aabb"), "side": list("lrlr")})


def test_line_chart_draws_a_line_per_hue_in_each_panel() -> None:
    plain = reporting.line_chart(POINTS, "x", "y", hue="kind", zero=True)
    split = reporting.line_chart(POINTS, "x", "y", hue="side", panel="kind", ylim=(-2, 4), title="two")
    assert [len(figure.axes) for figure in (plain, split)] == [1, 2]
    assert split.axes[0].get_ylim() == (-2, 4)
    for figure in (plain, split):
        render(figure)


def test_value_bars_keep_repeated_labels_apart() -> None:
    figure = reporting.value_bars(POINTS, "kind", "y", title="as they come")
    assert [bar.get_height() for bar in figure.axes[0].patches] == list(POINTS["y"])
    render(figure)
    repeated = pd.concat([POINTS, POINTS.assign(kind="other")])  # the index repeats, too
    render(reporting.value_bars(repeated, "x", "y", hue="kind"))


def test_value_map_writes_every_value() -> None:
    table = pd.DataFrame({"one": [0.25, 1.0], "two": [0.5, 0.0]}, index=["first", "second"])
    figure = reporting.value_map(table, "Four values")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.25", "0.50", "1.00", "0.00"]
    render(figure)


def test_what_a_notebook_shows_has_an_alternative_text() -> None:
    shown = DisplayFormatter().format
    table = pd.DataFrame({"x": [1, 2], "value": [70.0, 80.0], "low": [69.0, 79.0], "high": [71.0, 81.0]})
    _, described = shown(reporting.interval_chart(table, "x", "More is better", "pictures"))
    assert described["image/png"]["alt"] == "More is better; balanced accuracy (%) against pictures"
    figure, axis = plt.subplots()  # one that a notebook draws itself
    axis.plot([1, 2], label="loss")
    axis.set(title="Loss falls", xlabel="step")
    axis.legend()
    assert shown(figure)[1]["image/png"]["alt"] == "Loss falls; step; legend: loss"
    plt.close(figure)
    picture = reporting.mark_cell(Image.new("RGB", (96, 96)), "top", "Yes: hole, top")
    made, described = shown(picture)
    assert made["image/png"] and "Yes: hole, top" in described["image/png"]["alt"]
