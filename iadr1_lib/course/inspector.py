"""The inspector page: a picture in, and what each stage of a model says of it side by side, in a browser.

`judge` asks the stages and `answers_html` writes what they say; neither knows of a server. `build_page` puts both
behind Gradio (extra `app`), `serve` opens the page on this machine alone. No model, font or script is fetched.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from iadr1_lib.answer import GRID, Answer, cell_of_mask, cell_of_words, parse_answer
from iadr1_lib.course.steps import STAGE_TITLES, EvaluationSettings, stage_model
from iadr1_lib.data import open_image, share_depth
from iadr1_lib.errors import UserError
from iadr1_lib.expert_ad.claims import compared_with_tags
from iadr1_lib.reporting import heat_map, mark_cell
from iadr1_lib.reporting.style import STAGE_COLOURS
from iadr1_lib.runs import Run, base_model_dir, load_profile, project_root
from iadr1_lib.world import Kind, dev_families, shoot

if TYPE_CHECKING:
    from iadr1_lib.evaluation.inspection import Finding, Inspector

ABOUT = {
    "base": "before training: knows marks and materials, not the task",
    "pa_sft": "after learning from written examples",
    "sc_grpo": "after rewards for right and consistent answers",
}
INTRO = """# Is this part defective?
Drop a picture of a part, and if you can one of a good part of the same kind: three stages of one training look at it
and answer side by side, so that you see what each step of training changed. The models are small and often wrong; do
not rely on them for real parts. Pictures stay on this machine and are deleted when the program ends."""
READING = """<p class="legend"><b>How to read it.</b> The large word is the model's own verdict, after its reasoning.
Sentences of the reasoning are marked <span class="agrees">✓ agrees</span> or
<span class="contradicts">✗ contradicts</span> by whether they fit its own verdict, place and type; that says nothing
about whether they are true. P(Yes) is asked for separately, without reasoning: how likely the model finds a defect,
from 0 to 1. The threshold above applies to it alone.</p>"""
# Family (of those that no stage was trained on), seed of the picture, type of the defect.
SAMPLES = ((3, 6, "hole"), (10, 4, "missing parts"), (7, 0, None), (9, 8, "abrasion"), (5, 1, "contamination"))
Upload = dict[str, Any] | None  # what the browser sends for a picture
_LONGEST = 640  # pixels of a side of what is shown


class Stage(NamedTuple):
    """One column of the page."""

    name: str
    inspector: Inspector
    grid: int = GRID


class Shown(NamedTuple):
    """A picture, whether it was compared with a good one, and what each stage found."""

    picture: Image.Image
    compared: bool
    findings: list[tuple[Stage, Finding]]


def load_stages(run: Run | None = None) -> list[Stage]:
    """The stages of a run, or those of the model `photo` that ship.

    Raises:
        UserError: a stage of the run is not trained yet.
    """
    from iadr1_lib.evaluation import inspection, prediction

    profile = run.profile if run else load_profile("photo")
    base_prompt = profile.settings("evaluation", EvaluationSettings).base_prompt
    stages = []
    for name in ABOUT:
        folder = stage_model(run, name) if run else base_model_dir("photo").with_name(name)
        inspector = inspection.Inspector(folder, base_prompt if name == "base" else "bare")
        stages.append(Stage(name, inspector, prediction.grid_of(folder)))
    return stages


def judge(stages: Sequence[Stage], picture: str | Path, good: str | Path | None = None) -> Shown:
    """What the stages say of a picture, beside a good one if there is one; UserError if one cannot be read."""
    share_depth([picture, *([good] if good else [])])
    asked, references = open_image(picture), [open_image(good)] if good else []
    findings = []
    for stage in stages:
        stage.inspector.references = references
        findings += [(stage, finding) for finding in stage.inspector.judge([asked])]
    return Shown(asked, bool(good), findings)


# ------------------------------------------------------------------------------------------------ as HTML


def answers_html(shown: Shown, threshold: float) -> str:
    """A card for each stage, and one for the distances where the model compares; all pictures are inside."""
    cards = [_stage_card(shown.picture, stage, finding, threshold) for stage, finding in shown.findings]
    first = shown.findings[0][1]
    if first.heat is not None:
        other = "the good picture" if shown.compared else "the rest of the same picture"
        note = f'<p class="note">{escape(first.remark)}</p>' if first.remark else ""
        cards.append(
            '<article class="card"><h3>What all three see</h3>'
            f'<p class="about">how unlike {other} each place is</p><p class="verdict">Heat map</p>'
            f"{_img(heat_map(_small(shown.picture), first.heat), 'Heat map of the distances')}"
            '<p class="scale"><span>alike</span><i></i><span>unlike</span></p>'
            "<p>Distances are measured before any of the three decides. They differ in what they make of them.</p>"
            f"{note}</article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>{READING}'


def _stage_card(picture: Image.Image, stage: Stage, finding: Finding, threshold: float) -> str:
    answer, title = parse_answer(finding.raw), STAGE_TITLES[stage.name]
    cell = cell_of_words(answer.location or "", stage.grid)
    verdict, kind = {"yes": ("Defective", "bad"), "no": ("Good", "good"), None: ("No verdict", "none")}[answer.answer]
    place = f"at the {answer.location}" if answer.location else ""
    details = " ".join(word for word in (answer.type, place) if word) or "no type or place named"
    marked = mark_cell(_small(picture), cell, grid=stage.grid)
    return (
        f'<article class="card" style="border-top-color: {STAGE_COLOURS[title]}" data-stage="{stage.name}">'
        f'<h3>{title[0].upper() + title[1:]}</h3><p class="about">{ABOUT[stage.name]}</p>'
        f'<p class="verdict {kind}">{verdict}</p>{_img(marked, "The picture, marked: " + (cell or "nothing"))}'
        f'<p class="details">{escape(details)}</p>{_chance(finding.p_yes, threshold)}'
        f"<h4>Reasoning</h4>{_reasoning(finding, answer, stage.grid)}</article>"
    )


def _chance(p_yes: float | None, threshold: float) -> str:
    if p_yes is None:
        return ""
    verdict = "above the threshold: defective" if p_yes > threshold else "within the threshold: good"
    return (
        f'<div class="bar"><i style="width: {p_yes:.0%}"></i><b style="left: {threshold:.0%}"></b></div>'
        f'<p class="limit">P(Yes) {p_yes:.2f}, {verdict}</p>'
    )


def _reasoning(finding: Finding, answer: Answer, grid: int) -> str:
    if not answer.reasoning:
        return f"<p>none; it wrote: “{escape(finding.raw.strip())}”</p>"
    said = answer if grid == GRID else Answer(answer.answer, None, answer.type, answer.reasoning)
    looks = {True: ("agrees", "✓&nbsp;"), False: ("contradicts", "✗&nbsp;"), None: ("", "")}
    lines = []
    for sentence, agrees in compared_with_tags(answer.reasoning, said):
        look, mark = looks[agrees]
        lines.append(f'<span class="{look}">{mark}{escape(sentence)}</span>')
    cut = ["<em>… the answer reached the limit of length</em>"] if finding.cut else []
    return f"<p>{' '.join(lines + cut)}</p>"


def _small(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_LONGEST, _LONGEST))
    return small


def _img(picture: Image.Image, words: str) -> str:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90)
    return f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


# ------------------------------------------------------------------------------------------------ the page


def draw_samples(folder: Path) -> dict[str, list[str]]:
    """Pictures of the drawn world to try the page with: what each shows -> its path and that of a good one."""
    samples = {}
    for number, (family, seed, kind) in enumerate(SAMPLES):
        drawn = dev_families()[family]
        product = Kind(drawn.name, drawn.seed, (), family=drawn)
        asked, good = shoot(product, seed, kind), shoot(product, 100)
        paths = [folder / f"sample_{number}.png", folder / f"sample_{number}_good.png"]
        for path, photograph in zip(paths, (asked, good), strict=True):
            Image.fromarray(photograph.image).save(path)
        truth = f"{kind}, {cell_of_mask(asked.mask)}" if kind else "no defect"
        samples[f"{product.thing}: {truth}"] = [str(path) for path in paths]
    return samples


def build_page(stages: Sequence[Stage], samples: dict[str, list[str]]) -> Any:
    """The page as Gradio's Blocks; it answers as soon as a picture is there.

    Raises:
        UserError: Gradio is not installed.
    """
    gr = require_gradio()

    def ask(picture: Upload, good: Upload, threshold: float) -> tuple[Shown | None, str]:
        if not picture:
            return None, ""
        try:
            shown = judge(stages, _path(picture), _path(good) if good else None)
        except UserError as error:
            return None, f'<p class="note">{escape(str(error))}</p>'
        return shown, answers_html(shown, threshold)

    def move(shown: Shown | None, threshold: float) -> Any:
        return answers_html(shown, threshold) if shown else gr.skip()

    image: dict[str, Any] = {"sources": ["upload"], "height": 240, "buttons": []}
    with gr.Blocks(title="Is this part defective?", analytics_enabled=False) as page:
        gr.Markdown(INTRO)
        with gr.Row():
            picture = gr.Image(label="Picture to inspect", elem_id="picture", **image)
            good = gr.Image(label="A good part (optional)", elem_id="good", **image)
            with gr.Column(min_width=240):
                drawn = gr.Examples(
                    list(samples.values()), [picture, good], example_labels=list(samples), label="Or click a sample"
                )
        threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold on P(Yes): above it a part counts as defective")
        answers, shown = gr.HTML(padding=False), gr.State()
        last: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private"}
        for change in (picture.upload, picture.clear, good.upload, good.clear, drawn.load_input_event.then):
            # Without Gradio's own reading: of a file that is no picture, `judge` says so in a sentence.
            change(ask, [picture, good, threshold], [shown, answers], preprocess=False, **last)
        threshold.change(move, [shown, threshold], answers, show_progress="hidden", **last)
    return page


def _path(upload: dict[str, Any]) -> Path:
    """Where an upload lies. The browser says it, so nothing outside Gradio's folder is opened."""
    path = Path(upload["path"]).resolve()
    if not path.is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
        raise UserError(f"{path} was not dropped on the page: drop it there")
    return path


def serve(stages: Sequence[Stage], host: str, port: int | None = None) -> None:
    """Open the page until it is stopped; what was uploaded is deleted then."""
    gr = require_gradio()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(stages, draw_samples(Path(folder)))
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            **{"share": False, "ssr_mode": False, "mcp_server": False, "run_history": False, "footer_links": []},
            **{"quiet": True, "prevent_thread_lock": True},
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css_paths=project_root() / "data" / "templates" / "inspector.css",
        )
        print(f"open {url} in a browser; stop with Ctrl-C", flush=True)
        page.block_thread()


def require_gradio() -> Any:
    """Gradio, imported where it is needed: few have the extra. Raises UserError where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        install = "pip install --no-deps -r requirements-app.txt"
        raise UserError(f"the inspector page needs Gradio, which is missing: {install}") from error
    return gradio
