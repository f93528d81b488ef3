"""The report: one HTML page with the paper's tables beside ours, figures, a gallery of answers, deviations and cost.

build_report(run)              # one run's own page, report.html in its folder (notebook 10)
build_page(folders, path)      # of one run or of several seeds together; without any, of the shipped results

A page needs no other file and no network: figures are inside. It is made to be read on a screen and to be printed.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from iadr1_lib.answer import cell_of_words, parse_answer
from iadr1_lib.data import open_image
from iadr1_lib.evaluation import scoring
from iadr1_lib.files import write_text
from iadr1_lib.reporting import paper_tables, plots, report
from iadr1_lib.reporting.plots import STAGES
from iadr1_lib.reporting.studies import SHIPPED, shipped_study
from iadr1_lib.runs import Profile, Run, load_profile, project_root


@dataclass(frozen=True)
class _Subject:
    """What a page is about: numbers, the runs they came from (none for shipped results), the profile."""

    metrics: dict[str, Any]
    source: str
    folders: tuple[Path, ...]
    profile: Profile

    @property
    def pooled(self) -> bool:
        return "runs" in self.metrics["provenance"]

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """The provenance of each run."""
        said: dict[str, Any] = self.metrics["provenance"]
        return list(said["runs"]) if self.pooled else [said]


def build_report(run: Run) -> Path:
    """Write report.html into the run folder; UserError if the evaluation has not been recorded there."""
    return build_page([run.folder], run.path("report.html"))


def build_page(folders: Sequence[str | Path], path: Path) -> Path:
    """Write the page of one run, or of several seeds of one profile, to ``path``; without any, of the shipped results.

    Raises UserError for runs that cannot be put together (see `report.pool_seeds`) or results that are missing.
    """
    runs = tuple(Path(folder) for folder in folders)
    if not runs:
        found, source = report.shipped_metrics(), report.REFERENCE.as_posix()
    elif len(runs) == 1:
        found, source = report.recorded(runs[0]), "metrics.json"
    else:
        found, source = report.pooled_metrics(runs), "metrics.json of each run"
    profile = load_profile(found["provenance"]["parameters"]["profile"])
    subject = _Subject(found, source, runs, profile)
    seeds = ", ".join(str(block["seed"]) for block in subject.blocks)
    return write_text(path, _page(f"IAD-R1 in miniature: profile {profile.name}, seed {seeds}", subject))


def _page(title: str, subject: _Subject) -> str:
    ours = paper_tables.measured(subject.metrics, subject.source)
    agreement = paper_tables.agreement(ours)
    own = paper_tables.measured(subject.metrics, subject.source, found={}) if subject.folders else ours
    sections = {
        "In short": _in_short(subject, paper_tables.agreement(own)),
        "What agrees with the paper": _agreement(agreement, of_runs=bool(subject.folders)),
        "Tables 1 to 5": _tables(ours),
        "Figures": _figures(subject, ours),
        "What each benchmark measures": _predictors(subject),
        "Answers, right and wrong": _answers(subject),
        "Where we differ from the paper": [_deviations(), _source("DEVIATIONS.md")],
        "What it cost": _cost(subject),
        "Where these numbers come from": _provenance(subject, ours),
    }
    contents = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in sections)
    body = [f"<nav><ol>{contents}</ol></nav>"]
    for name, parts in sections.items():
        body.append(
            f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>\n' + "\n".join(filter(None, parts)) + "</section>"
        )
    return _PAGE.format(title=escape(title), body="\n".join(body), **_COLOURS)


# -------------------------------------------------------------------------------------------------- sections


def _in_short(subject: _Subject, agreement: pd.DataFrame) -> list[str]:
    brackets = (
        "round brackets: the lowest and the highest seed; square brackets: 95 % intervals of a bootstrap over images"
    )
    if subject.pooled:
        rows = subject.metrics["rows"]
        tables = [_table(report.pooled_table(rows)), _table(report.difference_table(rows))]
    else:
        tables = [_sentence(subject.metrics), _table(report.headline(subject.metrics).rename_axis("%").reset_index())]
    return [_paragraph(paper_tables.in_short(agreement)), *tables, _source(f"{subject.source}; {brackets}")]


def _sentence(metrics: dict[str, Any]) -> str:
    """The result in words: the stages' means, then the paired gains with their intervals."""
    means = report.stage_scores(metrics).query("metric == 'balanced_accuracy' and benchmark == @scoring.MEAN")
    levels = ", ".join(f"{STAGES[row['stage']]} {scoring.level(row)}" for row in means.to_dict("records"))
    gains = report.differences(metrics).query("metric == 'balanced_accuracy'").to_dict("records")
    said = "; ".join(f"{row['comparison']} {scoring.signed(row)}" for row in gains)
    missing = [title for stage, title in STAGES.items() if stage not in set(means["stage"])]
    lines = [f"Balanced accuracy, mean of the six mini benchmarks, in percent: {levels}."]
    if said:
        lines.append(f"Paired differences in points: {said}.")
    if missing:
        lines.append(f"Not in this run: {', '.join(missing)}.")
    if metrics["provenance"]["parameters"].get("profile") == "smoke":
        lines.append("The profile smoke only tests that everything runs: its models have learnt nothing.")
    return "".join(map(_paragraph, lines))


_WARNING = """<p class="warning">The six mini benchmarks are drawn and small; they are not the paper's six,
and the mini VLM has a few million parameters, not half a billion. Levels cannot be compared. What can be
compared is the direction: what is better than what, and about by how much.</p>"""


def _agreement(found: pd.DataFrame, of_runs: bool) -> list[str]:
    names = {
        "paper": "paper: difference",
        "ours": "ours: difference",
        "seeds": "ours: each seed",
        "source": "ours: file",
    }
    shown = found.drop(columns=["value", "low", "high", *([] if of_runs else ["source"])]).rename(columns=names)
    shipped = "Rows of ablation_*.json are of the studies that ship with the project, not of the runs of this page."
    return [
        _WARNING,
        _table(shown, kind="words"),
        _paragraph(shipped) if of_runs else "",
        _paragraph(
            "Balanced accuracy in points, mean of six benchmarks, zero-shot, signed so that a positive number is what "
            "the paper says. agrees: our 95 % interval lies above zero; disagrees: below; open: it holds zero. The "
            "paper prints single numbers without intervals. Of a dozen intervals, about one in twenty misses the "
            "truth by chance, and they speak of images, not of training seeds."
        ),
        _source(f"paper: data/paper_tables; ours: {_listed(found['source'])}"),
    ]


# What has to be known to read a table.
_NOTES = {
    1: "The average printed for Anomaly-OV 7B is not the mean of its columns. Simple predictors are our addition.",
    2: "Ours: PA-SFT with reasoning, and on the same pictures for as many steps with answers only.",
    3: "Ours: short runs of SC-GRPO from PA-SFT that differ in the rewards alone.",
    4: "The control is PA-SFT continued on SC-GRPO's pictures, with reasoning written for them; the paper has none.",
    5: "Rows whose rewards could not be told are marked so; that the second row has consistency is a reading. The full "
    "row's DAGM and SDD are those of Table 1's 7B model. The paper prints no mean: it is computed here.",
}


def _tables(ours: paper_tables.Measured) -> list[str]:
    parts = [_WARNING, _paragraph("Balanced accuracy in percent. The paper's rows first, then ours.")]
    for number, title in paper_tables.TITLES.items():
        table = paper_tables.table(number, ours)
        mine = paper_tables.block(table, paper_tables.OURS)
        parts += [
            f"<h3>{escape(title)}</h3>",
            _paragraph(_NOTES[number]),
            _table(paper_tables.block(table, paper_tables.PAPER), caption="The paper"),
            _table(mine.drop(columns="source"), caption="Ours, on other benchmarks"),
            _source(f"data/paper_tables (arXiv 2508.09178); ours: {_listed(mine['source'])}"),
        ]
    return parts


def figures(subject: _Subject, ours: paper_tables.Measured) -> dict[str, Figure | None]:
    """Every figure of the page by its caption; None for one of the paper's that has not been measured here."""
    metrics, scores = subject.metrics, report.stage_scores(subject.metrics)
    drawn: dict[str, Figure | None] = {
        f"Figure 1, ours: balanced accuracy on each benchmark. {paper_tables.above_the_base(ours)}": plots.stage_bars(
            scores
        )
    }
    for study, (title, xlabel, caption) in _CURVES.items():
        table, own = paper_tables.curve(study, ours), paper_tables.OWN_SETTING[study]
        drawn[caption] = plots.variant_curve(table, title, xlabel, own=own) if len(table) else None
    gains = _gains(subject)
    if len(gains):
        drawn["What each stage adds, paired image by image."] = plots.stage_differences(gains)
    for folder in subject.folders[:1]:
        drawn |= _run_figures(folder, report.parser_of(metrics))
    return drawn


_CURVES = {
    "grid": (
        "Grid in which places are named",
        "grid",
        "Figure 3, ours: PA-SFT with places named in coarser and finer grids. The paper finds 3×3 best; no values.",
    ),
    "data": (
        "Share of the records that PA-SFT learns from",
        "records",
        "How much data PA-SFT needs. The paper prints nothing to set beside this.",
    ),
}


def _gains(subject: _Subject) -> pd.DataFrame:
    """Differences in balanced accuracy for `plots.stage_differences`: one run's, or each seed's and pooled."""
    if not subject.pooled:
        return report.differences(subject.metrics).query("metric == 'balanced_accuracy'")
    rows = []
    for row in subject.metrics["rows"]:
        kind, *parts = row["name"].split("/")
        if kind == "difference" and parts[1] == "balanced_accuracy":
            said = {"comparison": report.comparison_title(parts[0]), "seed": parts[2].removeprefix("seed ")}
            rows.append(said | {key: row[key] for key in ("value", "low", "high")})
    return pd.DataFrame(rows)


def _run_figures(folder: Path, parser: str) -> dict[str, Figure]:
    """What only one run's own files show: answers against truth, severity, training."""
    drawn = {}
    answers = report.predictions(folder)
    if answers:
        judged = pd.concat([scoring.judge(table, parser).assign(stage=stage) for stage, table in answers.items()])
        drawn["What was answered, against the truth, all benchmarks together."] = plots.confusion_heatmaps(judged)
        severity = report.found_by_severity(answers, parser)
        if len(severity):
            drawn["Share of defects found, by how glaring they are."] = plots.severity_curve(severity)
    supervised = "loss mean_token_accuracy dev_score"
    reinforced = "reward reward_std frac_reward_zero_std completions/mean_length kl dev_score"
    for stage, columns in {"pa_sft": supervised, "sc_grpo": reinforced, "control": supervised}.items():
        path = folder / stage / "log.csv"
        if path.exists():
            log = pd.read_csv(path)
            there = [column for column in columns.split() if column in log]
            drawn[f"Training of {STAGES[stage]}: {stage}/log.csv."] = plots.training_curves(log, there)
    return drawn


def _figures(subject: _Subject, ours: paper_tables.Measured) -> list[str]:
    parts = [
        _figure(caption, drawing) if drawing else _paragraph(f"{caption} Ours: {paper_tables.NOT_MEASURED}.")
        for caption, drawing in figures(subject, ours).items()
    ]
    curves = [paper_tables.study_file(study) for study in _CURVES if study in ours.studies]
    own = [f"predictions/*.jsonl and */log.csv of {folder.name}" for folder in subject.folders[:1]]
    return [*parts, _source("; ".join([subject.source, *curves, *own]))]


def _predictors(subject: _Subject) -> list[str]:
    found = report.judged_benchmarks(subject.metrics)
    sentences = "".join(f"<li>{escape(said)}</li>" for said in report.what_they_measure(found))
    return [
        _paragraph(
            "What can be had without looking for defects, what a small classical detector finds, and what the models "
            "reach, on drawn and on real pictures. Where a predictor does well, a model's score there is no proof of "
            "inspection:"
        ),
        _table(report.predictor_table(found)),
        f"<ul>{sentences}</ul>",
        _source(f"{subject.source}; real pictures (seed 0): sanity_*.json and real_*.json in {SHIPPED.as_posix()}"),
    ]


# The four kinds of answers in the gallery: title, the truth, whether it is right.
_KINDS = (
    ("Defects found", "yes", 1),
    ("Defects missed or not read", "yes", 0),
    ("Normal pictures accepted", "no", 1),
    ("False alarms, or not read", "no", 0),
)


# A grid cannot keep its cards whole over two printed pages, so in print they stand side by side as words do.
_CARDS = """<style>
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: .9rem; }
.card { font-size: .82rem; } .card p { margin: .3rem 0; overflow-wrap: anywhere; } .card img { width: 100%; }
@media (max-width: 40rem) { .cards { grid-template-columns: repeat(2, 1fr); } }
@media print {
  .cards { display: block; } .card { break-inside: avoid; }
  .card { display: inline-block; width: 23%; margin: 0 1% .4rem 0; vertical-align: top; }
}
</style>"""


def _answers(subject: _Subject) -> list[str]:
    for folder in subject.folders[:1]:
        answers = report.predictions(folder)
        if answers:
            stage = "sc_grpo" if "sc_grpo" in answers else list(answers)[-1]
            said = f"After {STAGES[stage]}, in {folder.name}, drawn at random from each kind; the reasoning is whole."
            parser = report.parser_of(subject.metrics)
            return [_paragraph(said), gallery(answers[stage], parser=parser), _source(f"predictions/{stage}.jsonl")]
    return [_paragraph("There are no answers beside these results: name a run folder to see some.")]


def gallery(predictions: pd.DataFrame, each: int = 4, seed: int = 0, parser: str = "fair") -> str:
    """HTML of right and wrong answers: the picture with true and predicted cell, below it the whole reasoning.

    It brings its own style, so that a notebook shows it as the page does.

    Args:
        predictions: rows of predictions.jsonl (image, label, location, type, raw) with their pictures in place.
        each: how many at most of defects found, defects missed, normal pictures accepted and false alarms.
        seed: which are drawn.
        parser: how answers are read, see ``scoring.read_answer``.
    """
    judged = scoring.judge(predictions, parser)
    legend = " ".join(f'<b style="color:{colour}">□ {name}</b>' for name, colour in plots.CELL_COLOURS.items())
    parts = [_CARDS, f"<p>{legend}</p>"]
    for title, label, right in _KINDS:
        kind = judged[(judged["label"] == label) & (judged["correct"] == right)]
        drawn = kind.sample(min(each, len(kind)), random_state=seed)
        cards = "".join(_card(row) for row in drawn.to_dict("records"))
        of = int((judged["label"] == label).sum())
        parts.append(f'<h3>{title}: {len(kind)} of {of}</h3><div class="cards">{cards}</div>')
    return "\n".join(parts)


def _card(row: dict[Any, Any]) -> str:
    said = parse_answer(str(row["raw"]))
    picture = open_image(row["image"])
    picture.thumbnail((480, 480))
    true = row["location"] if isinstance(row["location"], str) else None
    marked = plots.mark_cell(picture, true, predicted=cell_of_words(said.location or ""))
    truth = "good" if row["label"] == "no" else ", ".join(filter(None, (row["type"], true))) or "defect"
    answer = str(row["answer"]).capitalize() if row["answer"] in ("yes", "no") else "not readable"
    told = ", ".join(filter(None, (answer, said.type, said.location)))
    return (
        f'<div class="card">{_image(_png(marked), f"truth: {truth}; answer: {told}")}'
        f"<p><b>truth:</b> {escape(truth)}<br><b>answer:</b> {escape(told)}</p>"
        f"<p>{escape(said.reasoning or str(row['raw']))}</p></div>"
    )


def _deviations() -> str:
    from nbconvert.filters.markdown import markdown2html

    path = project_root() / "DEVIATIONS.md"
    text = path.read_text(encoding="utf-8").split("\n", 1)[1] if path.exists() else "DEVIATIONS.md is missing."
    return f'<div class="wide">{markdown2html(text)}</div>'


def _cost(subject: _Subject) -> list[str]:
    if subject.pooled:
        return [_table(report.cost_table(subject.metrics["rows"])), _source(subject.source)]
    folder = subject.folders[0]
    return [
        _table(report.cost(folder)),
        _source("stage.json of each stage"),
        _table(report.notebook_times(folder)),
        _source("manifest.json; the notebook that wrote this page is not in it yet"),
    ]


def _provenance(subject: _Subject, ours: paper_tables.Measured) -> list[str]:
    records = {subject.source: subject.blocks}
    records |= {paper_tables.study_file(study): shipped_study(study)["provenance"]["runs"] for study in ours.studies}
    runs = [
        {
            "file": source,
            "seed": run["seed"],
            "commit": run["commit"],
            "recorded": run["time"],
            "hardware": _pairs(run["hardware"]),
            "world and weights": run["data_hash"][:12],
        }
        for source, blocks in records.items()
        for run in blocks
    ]
    facts = {
        "versions": _pairs(next(iter(records.values()))[0]["versions"]),
        "page written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if subject.folders:
        opened = ", ".join(f"{_openings(folder)} in {folder.name}" for folder in subject.folders)
        facts["how often the test families were opened"] = opened
    settings = [
        {"value of": f"{row['section']}.{row['key']}", "value": row["value"], "source": row["source"]}
        for row in subject.profile.table()
    ]
    return [
        _table(pd.DataFrame(runs).astype(str), kind="words"),
        _table(pd.DataFrame(facts.items(), columns=["what", "value"]).astype(str), kind="words"),
        "<h3>The profile</h3>",
        _table(pd.DataFrame(settings).astype(str), kind="words"),
        _source("provenance of each file; the profile"),
    ]


def _openings(folder: Path) -> int:
    path = folder / "test_openings.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def _pairs(block: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in block.items())


def _listed(names: pd.Series) -> str:
    return ", ".join(dict.fromkeys(names))


# ------------------------------------------------------------------------------------------------------ HTML


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _source(text: str) -> str:
    return f'<p class="source">Source: {escape(text)}.</p>'


_SHORT = 16  # rows: a table that fits on a page is not broken over two


def _table(table: pd.DataFrame, kind: str = "numbers", caption: str = "") -> str:
    if table.empty:
        return "<p>Not measured in this run.</p>"
    html = table.to_html(index=False, border=0, na_rep="–", float_format=lambda value: f"{value:.1f}")
    if caption:
        html = html.replace("<thead>", f"<caption>{escape(caption)}</caption><thead>", 1)
    return f'<div class="wide {kind}{" short" if len(table) <= _SHORT else ""}">{html}</div>'


def _figure(caption: str, drawing: Figure) -> str:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=130)
    width = min(100, round(100 * drawing.get_figwidth() / plots.WIDTH))  # so that letters have one size
    image = _image(buffer.getvalue(), caption, f"width:{width}%")
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _image(png: bytes, words: str, style: str = "") -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img style="{style}" alt="{escape(words)}" src="data:image/png;base64,{data}">'


_COLOURS = {"ink": "#222", "grey": "#555", "line": "#ddd", "mark": "#d55e00"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: {ink}; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }}
h3 {{ font-size: 1rem; margin-top: 1.6rem; }}
nav {{ columns: 2; font-size: .92rem; }} nav ol {{ margin: 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .6rem 0; font-size: .84rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding: .2rem .5rem; }}
th, td {{ padding: .2rem .5rem; border-bottom: 1px solid {line}; text-align: left; vertical-align: top; }}
thead th {{ border-bottom: 2px solid #888; }}
figure {{ margin: 1.4rem 0; }} img {{ max-width: 100%; height: auto; }}
figcaption, .source {{ color: {grey}; font-size: .82rem; }}
.warning {{ border-left: 4px solid {mark}; padding: .4rem .8rem; background: #fdf4ec; }}
code {{ font-size: .9em; }}
@media print {{
  @page {{ size: A4; margin: 14mm; }}
  body {{ font-size: 10pt; margin: 0; max-width: none; padding: 0; }}
  table {{ font-size: 7.5pt; }} th, td {{ padding: .08rem .2rem; }} .wide {{ overflow: visible; }}
  code {{ overflow-wrap: anywhere; }}
  .source, figcaption {{ break-before: avoid; }} h2, h3, caption {{ break-after: avoid; }}
  thead {{ display: table-header-group; }}
  figure, tr, .short, .warning {{ break-inside: avoid; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
