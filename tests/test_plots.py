"""Every figure of iadr1_lib.reporting: it is a Figure, shows what it was given, and is closed afterwards."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
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
    style = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == style


def render(figure: Figure) -> bytes:
    """Draw it in full: many mistakes show only then. The width is a notebook's or less."""
    assert isinstance(figure, Figure) and figure.get_size_inches()[0] <= style.WIDTH + 0.01
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    return file.getvalue()


def words(figure: Figure) -> str:
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return "\n".join(found)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two good and three defective pictures of several sizes, drawn at random."""
    rows = []
    for index, size in enumerate([(40, 30), (64, 64), (20, 90), (700, 500), (40, 30)]):
        image, mask = tmp_path / f"{index}.png", tmp_path / f"{index}_mask.png"
        Image.fromarray(RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(image)
        marked = Image.new("L", size)
        marked.paste(255, (0, 0, size[0] // 5, size[1] // 5))
        marked.save(mask)
        bad = index > 1
        rows.append(
            Sample(
                image=str(image),
                label="yes" if bad else "no",
                mask=str(mask) if bad else None,
                type=DEFECT_TYPES[index] if bad else None,
                location="top left" if bad else None,
                category="part",
                benchmark="drawn",
                split="test",
                source="test",
            )
        )
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
    keep = ("image", "label", "location", "type", "category", "benchmark")
    rows = [
        {**{key: getattr(sample, key) for key in keep}, "raw": raw} for sample, raw in zip(samples, raws, strict=True)
    ]
    return pd.DataFrame(rows)


def scores(key: str, names: tuple[str, ...] = STAGES) -> pd.DataFrame:
    rows = [
        {key: name, "benchmark": benchmark, "value": 60.0, "low": 55.0, "high": 64.0}
        for name in names
        for benchmark in ("first_one", "second", "mean")
    ]
    return pd.DataFrame(rows)


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("grid", [True, False])
def test_sample_sheet(samples: list[Sample], masks: bool, grid: bool) -> None:
    figure = reporting.sample_sheet(samples, columns=3, masks=masks, grid=grid, title="Five")
    render(figure)
    pictures = [axis for axis in figure.axes if axis.images]
    assert len(pictures) == 5
    defective = pictures[2:]
    assert all(bool(axis.collections) == masks for axis in defective)
    assert all(bool(axis.patches) == grid for axis in defective)
    assert not any(axis.patches or axis.collections for axis in pictures[:2])
    assert "top left" in words(figure) and "good" in words(figure)
    assert ("true cell" in words(figure)) == grid


def test_sample_sheet_of_one_good_picture_has_no_legend(samples: list[Sample]) -> None:
    figure = reporting.sample_sheet(samples[:1])
    render(figure)
    assert not figure.legends


def test_a_sheet_of_large_pictures_stays_small(samples: list[Sample]) -> None:
    figure = reporting.sample_sheet(samples[3:4])
    assert max(figure.axes[0].images[0].get_array().shape[:2]) <= 320


def test_sample_sheet_of_nothing() -> None:
    with pytest.raises(UserError):
        reporting.sample_sheet([])


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


def test_record_gallery_tells_accepted_from_rejected(predictions: pd.DataFrame) -> None:
    image = str(predictions["image"].iloc[0])
    sound = Record(image, "yes", "top", "hole", "bolt", "At the top there is a hole.")
    plain = Record(image, "no", None, None, "bolt", "Nothing stands out.")
    figure = reporting.record_gallery([(sound, ""), (plain, "say what was looked at")])
    render(figure)
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.images]
    assert titles == ["accepted: hole, top", "rejected: normal"]
    assert "say what was looked at" in words(figure)
    with pytest.raises(UserError):
        reporting.record_gallery([])


def test_answer_sheet_takes_what_there_is(predictions: pd.DataFrame) -> None:
    figure = reporting.answer_sheet(predictions.head(1), n_right=4, n_wrong=4)
    assert sum(bool(axis.images) for axis in figure.axes) == 1
    again = [reporting.answer_sheet(predictions, 1, 1, seed=3) for _ in range(2)]
    assert render(again[0]) == render(again[1])
    with pytest.raises(UserError):
        reporting.answer_sheet(predictions, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (96, 96), (300, 200), (1000, 3)])
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
    left, top, right, bottom = cell_box(cell, 600, 450)
    rows, columns = np.nonzero(coloured)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, right, bottom)
    assert cell_of_point(columns.mean(), rows.mean(), 600, 450) == cell


def test_mark_cell_frames_the_predicted_cell_within_the_true_one() -> None:
    blank = Image.new("RGB", (600, 450))
    both = np.asarray(reporting.mark_cell(blank, "left", predicted="left"), dtype=int)
    alone = np.asarray(reporting.mark_cell(blank, None, predicted="right"), dtype=int)
    blue, orange = both[..., 2] - both[..., 0] > 50, both[..., 0] - both[..., 2] > 50
    for inside, outside in zip(np.nonzero(blue), np.nonzero(orange), strict=True):
        assert outside.min() < inside.min() and inside.max() < outside.max()
    rows, columns = np.nonzero(alone[..., 2] - alone[..., 0] > 50)
    assert cell_of_point(columns.mean(), rows.mean(), 600, 450) == "right"
    assert not (alone[..., 0] - alone[..., 2] > 50).any()


def test_mark_cell_refuses_an_unknown_cell() -> None:
    with pytest.raises(ValueError):
        reporting.mark_cell(Image.new("RGB", (9, 9)), "nowhere")


def test_long_text_is_wrapped_into_the_picture() -> None:
    short, long = (reporting.mark_cell(Image.new("RGB", (400, 300)), "top", text) for text in ("Yes", "word " * 200))
    assert short.width == long.width == 400 and long.height > short.height
    margin = np.asarray(long)[300:, -3:]
    assert (margin == 255).all()  # nothing runs over the edge


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def log() -> pd.DataFrame:
    steps = np.arange(60)
    table = pd.DataFrame({"step": steps, "reward": RNG.normal(size=60), "kl": RNG.random(60)})
    table["dev_score"] = np.where(steps % 20 == 0, 70.0, np.nan)
    table["rewards/type_reward/mean"] = RNG.random(60)
    return table


def test_training_curves(log: pd.DataFrame) -> None:
    columns = ["reward", "kl", "dev_score", "rewards/type_reward/mean"]
    figure = reporting.training_curves(log, columns, smoothing=5, titles={"kl": "distance (nats)"})
    render(figure)
    assert len(figure.axes) == 4
    assert [len(axis.lines) for axis in figure.axes] == [2, 2, 1, 2]  # three dev scores are too few to smooth
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1] == "distance (nats)" and titles[3] == "type reward (points)"
    assert all(axis.get_xlabel() == "step" for axis in figure.axes)
    assert len(figure.axes[2].lines[0].get_xdata()) == 3


def test_the_strong_curve_is_the_rolling_mean(log: pd.DataFrame) -> None:
    figure = reporting.training_curves(log, ["reward"], smoothing=5)
    raw, smooth = (np.asarray(line.get_ydata()) for line in figure.axes[0].lines)
    np.testing.assert_allclose(raw, log["reward"])
    np.testing.assert_allclose(smooth[-1], log["reward"].tail(5).mean())


def test_training_curves_of_several_seeds(log: pd.DataFrame) -> None:
    both = pd.concat([log.assign(seed=1), log.assign(seed=2)])
    figure = reporting.training_curves(both, ["reward", "kl"], smoothing=1, hue="seed")
    render(figure)
    assert [len(axis.lines) for axis in figure.axes] == [2, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1", "2"]


# --- scores --------------------------------------------------------------------------------------


def test_stage_bars() -> None:
    figure = reporting.stage_bars(scores("stage"))
    render(figure)
    (axis,) = figure.axes
    assert sum(len(bars.patches) for bars in axis.containers if hasattr(bars, "patches")) == 9
    assert axis.get_ylim()[0] == 0 and "%" in axis.get_ylabel()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["first one", "second", "mean"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "PA-SFT", "SC-GRPO"]


def test_stage_bars_choose_the_metric() -> None:
    table = pd.concat(
        [
            scores("stage").assign(metric="balanced_accuracy"),
            scores("stage").assign(metric="location", value=np.nan),
        ]
    )
    figure = reporting.stage_bars(table)
    assert {round(bar.get_height()) for bar in figure.axes[0].patches} == {60}
    render(reporting.stage_bars(table, metric="location", chance=None))


def test_baseline_bars_show_guessing_and_the_limit() -> None:
    names = ("always yes", "always no", "file size", "mean brightness", "classical detector")
    for table in (scores("baseline", names), scores("baseline", names).drop(columns=["low", "high"])):
        figure = reporting.baseline_bars(table)
        render(figure)
        heights = {line.get_ydata()[0] for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1}
        assert {50, 60} <= heights


@pytest.mark.parametrize("several", [True, False])
def test_stage_differences(several: bool) -> None:
    rows = [
        {"comparison": name, "seed": seed, "value": 2.0, "low": -1.0, "high": 4.0}
        for name in ("SC-GRPO − PA-SFT", "SC-GRPO − control")
        for seed in (0, 1, 2, "pooled")
    ]
    table = pd.DataFrame(rows if several else rows[:4])
    figure = reporting.stage_differences(table if several else table.drop(columns="comparison"))
    render(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["seed 0", "seed 1", "seed 2", "pooled"] * (2 if several else 1)
    assert "+2.0 [−1.0, +4.0]" in words(figure)
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
    rows = [
        {"stage": stage, "severity": severity, "value": 50.0, "low": 40.0, "high": 60.0, "n": 12}
        for stage in STAGES
        for severity in (0.1, 0.5, 0.9)
    ]
    figure = reporting.interval_chart(pd.DataFrame(rows), "severity", "Defects found", hue="stage")
    render(figure)
    assert figure.axes[0].get_ylim() == (0, 102) and words(figure).count("n=12") == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "PA-SFT", "SC-GRPO"]
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


# --- bad tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        reporting.stage_bars,
        reporting.baseline_bars,
        reporting.stage_differences,
        reporting.confusion_heatmaps,
        reporting.answer_sheet,
        lambda table: reporting.interval_chart(table, "variant", "Grid"),
        lambda table: reporting.training_curves(table, ["loss"]),
    ],
)
def test_a_table_without_its_columns_is_refused(draw: Callable[[pd.DataFrame], Figure]) -> None:
    with pytest.raises(UserError, match="has no column"):
        draw(pd.DataFrame({"something": [1]}))


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(UserError, match="no rows"):
        reporting.stage_bars(scores("stage").head(0))


def test_a_figure_that_fails_is_closed_too(samples: list[Sample]) -> None:
    Path(samples[1].image).unlink()
    with pytest.raises(UserError):
        reporting.sample_sheet(samples)


# --- lessons --------------------------------------------------------------------------------------

POINTS = pd.DataFrame(
    {
        "x": [0, 1, 0, 1],
        "y": [1.0, 2.0, 3.0, -1.0],
        "kind": ["a", "a", "b", "b"],
        "side": ["l", "r", "l", "r"],
    }
)


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
    figure = reporting.value_map(pd.DataFrame({"one": [0.25, 1.0], "two": [0.5, 0.0]}, index=["first", "second"]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.25", "0.50", "1.00", "0.00"]
    render(figure)
