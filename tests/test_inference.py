"""Asking a model: batches, determinism, what a row holds; the file of predictions that a stopped run continues."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch
from PIL import Image

from iadr1_lib.answer import QUESTION, build_answer
from iadr1_lib.data import open_image
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import (
    PREDICTION_KEYS,
    finished_images,
    grounding,
    judge,
    prediction,
    prediction_row,
    protocol,
    read_predictions,
    score,
)
from iadr1_lib.evaluation.inspection import Inspector
from iadr1_lib.evaluation.prediction import generate, predict, prompt_messages
from iadr1_lib.models import load_model
from iadr1_lib.records import Sample

QUICK: dict[str, Any] = {"batch_size": 2, "max_new_tokens": 4, "quiet": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.save(tmp_path_factory.mktemp("tiny") / "stage" / "model")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return tiny_vlm.draw_samples(tmp_path_factory.mktemp("pictures"), 6)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[list[Image.Image]]:
    """The pictures of each question that `generate` is called with."""
    groups: list[list[Image.Image]] = []

    def watched(model: Any, processor: Any, images: Any, **kwargs: Any) -> Any:
        groups.extend(images)
        return generate(model, processor, images, **kwargs)

    monkeypatch.setattr(prediction, "generate", watched)
    return groups


def sample_of(path: Path) -> Sample:
    return Sample(str(path), "no", None, None, None, "c", "tiny", "test", "x")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- one batch ------------------------------------------------------------------------------------------


def test_a_batch_of_mixed_sizes_gets_an_answer_each_the_same_twice(folder: Path) -> None:
    model, processor = load_model(folder)
    images = [[Image.new("RGB", size, "grey")] for size in ((20, 200), (96, 96), (640, 480), (1, 1))]
    once = generate(model, processor, images, max_new_tokens=8)
    assert once == generate(model, processor, images, max_new_tokens=8) and len(once) == 4
    assert all(isinstance(text, str) and (p is None or 0 <= p <= 1) for text, p, _ in once)


def test_one_and_two_pictures_of_any_mode_may_share_a_batch(folder: Path) -> None:
    model, processor = load_model(folder)
    picture = Image.new("RGB", (96, 96), "red")
    together = generate(model, processor, [[picture], [picture, picture]], max_new_tokens=6)
    alone = [generate(model, processor, [g], max_new_tokens=6)[0] for g in ([picture], [picture, picture])]
    assert [answer.raw for answer in together] == [answer.raw for answer in alone]
    modes = [Image.new(mode, (30, 40)) for mode in ("L", "1", "RGBA", "P", "CMYK")]
    assert len(Inspector(folder).judge(modes)) == 5


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([0, 5, 1, 6], 1.0),  # after the answer tag
        ([3, 5, 1, 6], 1.0),  # the tag counts before an earlier word
        ([0, 3, 1, 6], 0.5),  # no tag: the first of the words
        ([0, 0, 6, 6], None),
        ([0, 0, 6, 5], None),  # the tag is the last token
    ],
)
def test_p_yes_is_read_where_the_word_is_chosen(ids: list[int], expected: float | None) -> None:
    logits = torch.zeros(4, 8)
    logits[2, 1] = 50.0  # sure of Yes at the third place, undecided elsewhere
    assert prediction._p_yes(torch.tensor(ids), logits, [1, 2], [3, 4], 5) == pytest.approx(expected)


def test_prompts_hold_pictures_first_then_the_question() -> None:
    [message] = prompt_messages("bare", images=2)
    assert [p["type"] for p in message["content"]] == ["image", "image", "text"]
    for mode, end in (("bare", ""), ("yes-no", " Answer yes or no .")):
        assert prompt_messages(mode)[0]["content"][-1]["text"] == QUESTION + end
    with pytest.raises(UserError, match="bare, yes-no"):
        prompt_messages("polite")


@pytest.mark.parametrize("prompt", ["yes-no", "bare"])
def test_answer_only_reads_p_yes_where_generation_would_choose(
    folder: Path, samples: list[Sample], prompt: str
) -> None:
    model, processor = load_model(folder)
    images = [[open_image(s.image)] for s in samples]
    prefix, yes, no = prediction._choice(processor, tagged=prompt == "bare")
    assert prefix == ("<think></think>" if prompt == "bare" else "")
    assert not prefix or processor.tokenizer.decode(yes + no) == "<location><answer>"
    answers = prediction.answer_only(model, processor, images, prompt=prompt)
    for group, (word, p, _) in zip(images, answers, strict=True):
        text = processor.apply_chat_template(prompt_messages(prompt), add_generation_prompt=True) + prefix
        inputs = processor(images=[group], text=[text], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            chances = model(**inputs).logits[0, -1].softmax(-1)
        expected = float(chances[yes].sum() / (chances[yes].sum() + chances[no].sum()))
        assert p == pytest.approx(expected, abs=1e-5) and word == ("Yes" if p > 0.5 else "No")


def test_speed_says_where_the_time_goes(folder: Path, samples: list[Sample]) -> None:
    for options in ({"batch_size": 3, "max_new_tokens": 5}, {"answer_only": True}):
        seconds, tokens = prediction.measure_speed(folder, samples, **options)
        assert set(seconds) == {"decode", "answer"} and min(seconds.values()) > 0 and 0 <= tokens <= 30


# --- predict --------------------------------------------------------------------------------------------


def test_rows_hold_truth_answer_and_origin(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    rows = rows_of(predict(folder, samples, tmp_path / "a" / "p.jsonl", **QUICK, seed=3))
    assert [r["image"] for r in rows] == [s.image for s in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert tuple(key for key in row if key != "cut") == PREDICTION_KEYS
        assert (row["label"], row["type"], row["location"]) == (sample.label, sample.type, sample.location)
        assert (row["seed"], row["prompt"], row["protocol"]) == (3, "bare", "course")
        assert row["model"].startswith("stage/model@") and (row["p_yes"] is None or 0 <= row["p_yes"] <= 1)
    rows = rows_of(predict(folder, samples, tmp_path / "q.jsonl", answer_only=True, quiet=True))
    assert {r["protocol"] for r in rows} == {"course, answer only"} and len(rows) == len(samples)


def test_a_killed_run_goes_on_after_its_last_whole_line(
    folder: Path, samples: list[Sample], tmp_path: Path, shown: list[list[Image.Image]]
) -> None:
    whole = predict(folder, samples, tmp_path / "whole.jsonl", **QUICK).read_bytes()
    lines = whole.splitlines(keepends=True)
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b"".join(lines[:2]) + lines[2][:25])
    shown.clear()
    for _ in range(2):  # the second time nothing is left to ask
        predict(folder, samples, broken, **QUICK)
        assert len(shown) == 4 and broken.read_bytes() == whole


def test_answers_of_another_model_are_set_aside(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    out = predict(folder, samples[:2], tmp_path / "p.jsonl", **QUICK)
    old = out.read_bytes()
    model, processor = tiny_vlm.build()
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "other" / "model")
    predict(tmp_path / "other" / "model", samples[:2], out, **QUICK)
    assert out.with_name("p.jsonl.old").read_bytes() == old
    assert {r["model"].split("@")[0] for r in rows_of(out)} == {"other/model"}


def test_a_missing_model_and_a_broken_picture_are_user_errors(
    folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no model folder"):
        predict(tmp_path / "none", samples, tmp_path / "p.jsonl")
    picture = Path(samples[0].image).read_bytes()
    (tmp_path / "cut.png").write_bytes(picture[: len(picture) // 2])
    with pytest.raises(UserError, match="cut.png"):
        predict(folder, [sample_of(tmp_path / "cut.png")], tmp_path / "p.jsonl", quiet=True)
    with pytest.raises(UserError, match="lost.png"):  # what was answered before it stays
        predict(folder, [*samples[:4], sample_of(tmp_path / "lost.png")], tmp_path / "p.jsonl", **QUICK)
    assert [r["image"] for r in rows_of(tmp_path / "p.jsonl")] == [s.image for s in samples[:4]]


def test_with_references_two_pictures_are_shown_and_the_row_names_the_first(
    folder: Path, samples: list[Sample], tmp_path: Path, shown: list[list[Image.Image]]
) -> None:
    beside = {s.image: [Path(samples[0].image)] for s in samples[1:5]}
    rows = rows_of(predict(folder, samples[1:5], tmp_path / "p.jsonl", references=beside, **QUICK))
    first, *others = (open_image(s.image) for s in samples[:5])
    assert shown == [[first, other] for other in others]
    assert {r["reference"] for r in rows} == {samples[0].image}
    with pytest.raises(UserError, match="1 pictures have no reference"):
        predict(folder, samples[1:6], tmp_path / "q.jsonl", references=beside, **QUICK)
    with pytest.raises(UserError, match="one reference, not several"):
        twice = {image: 2 * paths for image, paths in beside.items()}
        predict(folder, samples[1:5], tmp_path / "q.jsonl", references=twice, **QUICK)
    assert not (tmp_path / "q.jsonl").exists()


def test_a_protocol_is_asked_and_noted(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    asked = protocol("released", "mini", "base")
    rows = rows_of(predict(folder, samples[:3], tmp_path / "p.jsonl", protocol=asked, **QUICK))
    assert {(r["protocol"], r["prompt"]) for r in rows} == {("released", asked.prompt)}
    model, processor = load_model(folder)
    picture = open_image(samples[0].image)
    assert rows[0]["raw"] == generate(model, processor, [[picture]], prompt=asked, max_new_tokens=4)[0].raw
    predict(folder, samples[:3], tmp_path / "p.jsonl", **QUICK)
    assert {r["protocol"] for r in rows_of(tmp_path / "p.jsonl")} == {"course"}  # the others are set aside
    assert len(rows_of(tmp_path / "p.jsonl.old")) == 3


def test_sampling_follows_the_seed(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    options: dict[str, Any] = {"protocol": protocol("released", "qwen", "base"), "max_new_tokens": 8, "quiet": True}
    files = [
        predict(folder, samples, tmp_path / name, seed=seed, **options) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    texts = [[row["raw"] for row in rows_of(path)] for path in files]
    assert texts[0] == texts[1] != texts[2]


def test_batches_go_from_small_to_large_pictures(tmp_path: Path) -> None:
    for number, side in enumerate((60, 20, 40, 20)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{number}.png")
    batches = prediction.batches_of([sample_of(tmp_path / f"{number}.png") for number in range(4)], 2)
    assert [[Path(s.image).stem for s in batch] for batch in batches] == [["1", "3"], ["2", "0"]]


def test_answers_without_their_end_are_marked_as_cut(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    model, processor = load_model(folder)
    images = [[open_image(s.image)] for s in samples]
    assert all(answer.cut for answer in generate(model, processor, images, max_new_tokens=4))  # random weights go on
    model.generation_config.forced_eos_token_id = processor.tokenizer.eos_token_id
    assert not any(answer.cut for answer in generate(model, processor, images, max_new_tokens=4))
    out = tmp_path / "p.jsonl"
    for length, limit in ((4, 4), (6, 6), (5, 6)):  # a larger limit is a new question, a smaller one is not
        predict(folder, samples, out, max_new_tokens=length, quiet=True)
        assert [row["cut"] for row in rows_of(out)] == [limit] * len(samples)
    table = score(read_predictions(out))
    assert table.loc[table["metric"] == "cut", "value"].tolist() == [len(samples)]
    old = [{key: value for key, value in row.items() if key != "cut"} for row in rows_of(out)]
    assert "cut" not in set(score(read_predictions(write_rows(out, old)))["metric"])
    assert predict(folder, samples, out, **QUICK) and rows_of(out) == old  # such rows stay


def write_stage(folder: Path, tmp_path: Path, **note: Any) -> Path:
    """A copy of the model in a stage's folder with a note of the training."""
    copy = shutil.copytree(folder, tmp_path / "stage" / "model")
    (tmp_path / "stage" / "stage.json").write_text(json.dumps(note))
    return copy


@pytest.mark.parametrize(("trained", "longest"), [(None, 96), (50, 96), (400, 500)])
def test_the_longest_answer_is_the_familys_or_what_training_needs(
    folder: Path, tmp_path: Path, trained: int | None, longest: int
) -> None:
    stage = write_stage(folder, tmp_path, **({"answer_tokens": trained} if trained else {}))
    assert prediction.longest_answer(stage) == longest
    for name in ("fair", "released"):
        assert prediction.longest_answer(stage, protocol(name, "mini", "tuned")) == longest
    assert prediction.longest_answer(stage, protocol("released", "qwen", "tuned")) == 512
    (stage / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    assert prediction.longest_answer(stage) == 512
    (stage.parent / "stage.json").write_text(json.dumps({"answer_tokens": "many"}))
    with pytest.raises(UserError, match="answer_tokens 'many'"):
        prediction.longest_answer(stage)


def test_a_model_of_another_grid_is_judged_by_its_own_places(folder: Path, tmp_path: Path) -> None:
    pixels = np.zeros((60, 60), np.uint8)
    pixels[32:40, 32:40] = 255  # the center of 3 x 3, the bottom right of 2 x 2
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    for name in ("a", "b"):
        Image.new("RGB", (60, 60)).save(tmp_path / f"{name}.png")
    sample = Sample(str(tmp_path / "a.png"), "yes", str(tmp_path / "mask.png"), "hole", "center", "c", "t", "test", "x")
    unknown = replace(sample, image=str(tmp_path / "b.png"), mask=None, location="center")
    stage = write_stage(folder, tmp_path, grid=2)
    out = predict(stage, [sample, unknown], tmp_path / "p.jsonl", **QUICK)
    rows = rows_of(out)
    assert [(row["location"], row["grid"]) for row in rows] == [("bottom right", 2), (None, 2)]
    right = [row | {"raw": build_answer("x", "yes", "bottom right", "hole")} for row in rows]
    table = read_predictions(write_rows(out, right))
    assert judge(table)["location_right"].tolist()[0] == 1
    assert grounding(table, [sample, unknown]).query("benchmark == 't'")["value"].tolist() == [100]
    predict(folder, [sample, unknown], out, **QUICK)  # the usual grid: all asked anew
    assert all("grid" not in row for row in rows_of(out)) and len(rows_of(out)) == 2
    with pytest.raises(UserError, match="different grids"):
        read_predictions(write_rows(out, [rows[0], rows[1] | {"grid": 4}]))


# --- what a file still holds ------------------------------------------------------------------------------

ORIGIN = {"prompt": "bare", "protocol": "course", "model": "stage/model@1", "seed": 0}


@pytest.mark.parametrize(
    ("change", "beside"),
    [
        *((change, False) for change in ({"model": "stage/model@2"}, {"prompt": "yes-no"}, {"seed": 1}, {"grid": 2})),
        *((change, False) for change in ({"label": "yes"}, {"image": "gone.png"}, {"cut": 5}, {"reference": "a.png"})),
        ({"reference": None}, True),  # asked beside a reference, answered without one
        ({"reference": "b.png"}, True),
    ],
)
def test_answers_to_another_question_are_set_aside(
    samples: list[Sample], tmp_path: Path, change: dict[str, Any], beside: bool
) -> None:
    one, other = samples[0], samples[2]
    assert one.label == other.label == "no"
    references = {s.image: [Path("a.png")] for s in (one, other)} if beside else None
    more = {"reference": "a.png"} if beside else {}
    kept, changed = (prediction_row(s, "Yes", 0.5, ORIGIN) | more for s in (one, other))
    out = write_rows(tmp_path / "p.jsonl", [kept, changed | change])
    before = out.read_bytes()
    assert finished_images([one, other], out, ORIGIN, references, longest=6) == {one.image}
    assert rows_of(out) == [kept] and out.with_name("p.jsonl.old").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text[:-1].encode(),
        lambda text: (text + text[:30]).encode(),
        lambda text: (text + '{"image": "gr').encode() + "ö".encode()[:1],
    ],
    ids=["bom", "crlf", "no last line end", "cut", "cut in a letter"],
)
def test_a_run_goes_on_whatever_wrote_its_file(
    samples: list[Sample], tmp_path: Path, damage: Callable[[str], bytes]
) -> None:
    out = write_rows(tmp_path / "p.jsonl", [prediction_row(s, "Yes", 0.5, ORIGIN) for s in samples])
    text = out.read_text()
    out.write_bytes(damage(text))
    assert finished_images(samples, out, ORIGIN) == {s.image for s in samples}
    assert out.read_text() == text and not out.with_name("p.jsonl.old").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{broken\n{}\n", "p.jsonl, line 1"), ("{}".encode("utf-16"), "UTF-16"), (b"[]\n", "line 1")],
)
def test_a_damaged_file_stops_the_run_and_stays(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        finished_images([], tmp_path / "p.jsonl", ORIGIN)
    assert (tmp_path / "p.jsonl").read_bytes() == content
