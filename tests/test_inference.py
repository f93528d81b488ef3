"""Asking a model: batches, determinism, resume, what a row holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch
from PIL import Image

from iadr1_lib.answer import QUESTION
from iadr1_lib.data import open_image
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import prediction, protocol, scoring, speed
from iadr1_lib.evaluation.prediction import generate, predict, prompt_messages
from iadr1_lib.models import load_model
from iadr1_lib.records import Sample

KEYS = {
    "image", "category", "benchmark", "label", "location", "type",
    "raw", "p_yes", "prompt", "protocol", "model", "seed",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.save(tmp_path_factory.mktemp("tiny") / "stage" / "model")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return tiny_vlm.draw_samples(tmp_path_factory.mktemp("pictures"), 6)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_of_mixed_sizes_gets_an_answer_each_the_same_twice(folder: Path) -> None:
    model, processor = load_model(folder)
    images = [[Image.new("RGB", size, "grey")] for size in ((20, 200), (96, 96), (640, 480), (1, 1))]
    once = generate(model, processor, images, max_new_tokens=8)
    assert once == generate(model, processor, images, max_new_tokens=8)
    assert len(once) == 4
    assert all(isinstance(text, str) and (p is None or 0 <= p <= 1) for text, p, _ in once)


def test_one_and_two_pictures_may_share_a_batch(folder: Path) -> None:
    model, processor = load_model(folder)
    picture = Image.new("RGB", (96, 96), "red")
    together = generate(model, processor, [[picture], [picture, picture]], max_new_tokens=6)
    alone = [generate(model, processor, [g], max_new_tokens=6)[0] for g in ([picture], [picture, picture])]
    assert [text for text, *_ in together] == [text for text, *_ in alone]


def test_pictures_of_any_mode_are_answered(folder: Path) -> None:
    modes = [Image.new(mode, (30, 40)) for mode in ("L", "1", "RGBA", "P", "CMYK")]
    assert len(prediction.answer_images(folder, modes)) == 5


def p_yes(ids: list[int], logits: torch.Tensor) -> float | None:
    return prediction._p_yes(torch.tensor(ids), logits, yes=[1, 2], no=[3, 4], tag=5)


def test_p_yes_is_read_where_the_word_is_chosen() -> None:
    logits = torch.zeros(4, 8)
    logits[2, 1] = 50.0  # sure of Yes at the third place, undecided elsewhere
    assert p_yes([0, 5, 1, 6], logits) == pytest.approx(1.0)  # after the answer tag
    assert p_yes([3, 5, 1, 6], logits) == pytest.approx(1.0)  # the tag counts before an earlier word
    assert p_yes([0, 3, 1, 6], logits) == pytest.approx(0.5)  # no tag: the first of the words
    assert p_yes([0, 0, 6, 6], logits) is None
    assert p_yes([0, 0, 6, 5], logits) is None  # the tag is the last token


def test_an_unknown_prompt_mode_is_a_user_error() -> None:
    with pytest.raises(UserError, match="bare, yes-no"):
        prompt_messages("polite")


def test_prompts_hold_pictures_first_then_the_question() -> None:
    [message] = prompt_messages("bare", images=2)
    assert [p["type"] for p in message["content"]] == ["image", "image", "text"]
    assert message["content"][-1]["text"] == QUESTION
    assert prompt_messages("yes-no")[0]["content"][-1]["text"].startswith(QUESTION)


def test_rows_hold_truth_answer_and_origin(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    out = predict(folder, samples, tmp_path / "a" / "p.jsonl", batch_size=4, max_new_tokens=6, seed=3, quiet=True)
    rows = rows_of(out)
    assert [r["image"] for r in rows] == [s.image for s in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert set(row) - {"cut"} == KEYS
        assert (row["label"], row["type"], row["location"]) == (sample.label, sample.type, sample.location)
        assert row["seed"] == 3 and row["prompt"] == "bare" and row["model"].startswith("stage/model@")
        assert row["p_yes"] is None or 0 <= row["p_yes"] <= 1


def test_a_killed_run_goes_on_after_its_last_whole_line(
    folder: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "max_new_tokens": 6, "quiet": True}
    whole = predict(folder, samples, tmp_path / "whole.jsonl", **options).read_bytes()
    lines = whole.splitlines(keepends=True)
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b"".join(lines[:2]) + lines[2][:25])
    asked: list[int] = []
    honest = prediction.generate

    def counted(model: Any, processor: Any, images: Any, **kwargs: Any) -> Any:
        asked.append(len(images))
        return honest(model, processor, images, **kwargs)

    monkeypatch.setattr(prediction, "generate", counted)
    predict(folder, samples, broken, **options)
    assert sum(asked) == 4
    assert broken.read_bytes() == whole
    predict(folder, samples, broken, **options)
    assert sum(asked) == 4  # nothing left to ask


def test_answers_of_another_model_are_set_aside(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "quiet": True}
    out = predict(folder, samples[:2], tmp_path / "p.jsonl", **options)
    old = out.read_bytes()
    model, processor = tiny_vlm.build()
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    tiny_vlm.models.save_model(model, processor, tmp_path / "other" / "model")
    predict(tmp_path / "other" / "model", samples[:2], out, **options)
    assert out.with_name("p.jsonl.old").read_bytes() == old
    assert {r["model"].split("@")[0] for r in rows_of(out)} == {"other/model"}
    predict(tmp_path / "other" / "model", samples[:2], out, prompt="yes-no", **options)
    assert {r["prompt"] for r in rows_of(out)} == {"yes-no"}  # another prompt is another run, too


def test_answers_about_pictures_that_are_gone_or_have_another_truth_are_dropped(
    folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "quiet": True}
    out = predict(folder, samples[:3], tmp_path / "p.jsonl", **options)
    old = out.read_bytes()
    other = "no" if samples[0].label == "yes" else "yes"
    relabelled = replace(samples[0], label=other)
    predict(folder, [relabelled, samples[1]], out, **options)
    assert out.with_name("p.jsonl.old").read_bytes() == old
    assert [(row["image"], row["label"]) for row in rows_of(out)] == [
        (samples[1].image, samples[1].label),
        (samples[0].image, other),
    ]


def test_a_missing_model_and_a_broken_picture_are_user_errors(
    folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no model folder"):
        predict(tmp_path / "none", samples, tmp_path / "p.jsonl")
    picture = Path(samples[0].image).read_bytes()
    (tmp_path / "cut.png").write_bytes(picture[: len(picture) // 2])
    cut = Sample(str(tmp_path / "cut.png"), "no", None, None, None, "c", "tiny", "test", "x")
    with pytest.raises(UserError, match="cut.png"):
        predict(folder, [cut], tmp_path / "p.jsonl", quiet=True)


def test_with_references_two_pictures_are_shown_and_the_row_names_the_first(
    folder: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "max_new_tokens": 4, "quiet": True}
    beside = {s.image: Path(samples[0].image) for s in samples[1:5]}
    shown: list[list[tuple[int, int]]] = []
    honest = prediction.generate

    def watched(model: Any, processor: Any, images: Any, **kwargs: Any) -> Any:
        shown.extend([picture.getpixel((48, 48)) for picture in group] for group in images)
        return honest(model, processor, images, **kwargs)

    monkeypatch.setattr(prediction, "generate", watched)
    out = predict(folder, samples[1:5], tmp_path / "p.jsonl", references=beside, **options)
    first = Image.open(samples[0].image).getpixel((48, 48))
    assert shown == [[first, Image.open(s.image).getpixel((48, 48))] for s in samples[1:5]]
    rows = rows_of(out)
    assert {r["reference"] for r in rows} == {samples[0].image} and set(rows[0]) - {"cut"} == KEYS | {"reference"}
    with pytest.raises(UserError, match="1 pictures have no reference"):
        predict(folder, samples[1:6], tmp_path / "q.jsonl", references=beside, **options)
    assert not (tmp_path / "q.jsonl").exists()


def test_answers_without_or_beside_another_reference_are_set_aside(
    folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "quiet": True}
    out = tmp_path / "p.jsonl"
    for beside in (None, {samples[1].image: Path(samples[0].image)}, {samples[1].image: Path(samples[2].image)}):
        before = out.read_bytes() if out.exists() else None
        predict(folder, samples[1:2], out, references=beside, **options)
        if before is not None:
            assert out.with_name("p.jsonl.old").read_bytes() == before
        assert [r.get("reference") for r in rows_of(out)] == [str(p) for p in beside.values()] if beside else [None]


def test_a_picture_that_vanishes_on_the_way_leaves_what_was_answered(
    folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    lost = Sample(str(tmp_path / "lost.png"), "no", None, None, None, "c", "tiny", "test", "x")
    with pytest.raises(UserError, match="lost.png"):
        predict(folder, [*samples[:4], lost], tmp_path / "p.jsonl", batch_size=2, max_new_tokens=4, quiet=True)
    assert [r["image"] for r in rows_of(tmp_path / "p.jsonl")] == [s.image for s in samples[:4]]


# --- protocols ------------------------------------------------------------------------------------------


def test_a_protocol_is_asked_and_noted(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    asked = protocol("released", "mini", "base")
    rows = rows_of(predict(folder, samples[:3], tmp_path / "p.jsonl", protocol=asked, max_new_tokens=4, quiet=True))
    assert {(r["protocol"], r["prompt"]) for r in rows} == {("released", asked.prompt)}
    model, processor = load_model(folder)
    picture = open_image(samples[0].image)
    assert rows[0]["raw"] == generate(model, processor, [[picture]], prompt=asked, max_new_tokens=4)[0][0]
    predict(folder, samples[:3], tmp_path / "p.jsonl", max_new_tokens=4, quiet=True)
    assert {r["protocol"] for r in rows_of(tmp_path / "p.jsonl")} == {"course"}  # the others are set aside
    assert len(rows_of(tmp_path / "p.jsonl.old")) == 3


def test_sampling_follows_the_seed(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    asked = protocol("released", "qwen", "base")  # temperature 0.7
    made = [
        [
            r["raw"]
            for r in rows_of(
                predict(folder, samples, tmp_path / name, protocol=asked, max_new_tokens=8, seed=seed, quiet=True)
            )
        ]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert made[0] == made[1] != made[2]


def test_batches_go_from_small_to_large_pictures(folder: Path, tmp_path: Path) -> None:
    mixed = []
    for number, side in enumerate((60, 20, 40, 20)):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (side, side)).save(path)
        mixed.append(Sample(str(path), "no", None, None, None, "c", "tiny", "test", "x"))
    out = predict(folder, mixed, tmp_path / "p.jsonl", batch_size=2, max_new_tokens=2, quiet=True)
    assert [Path(r["image"]).stem for r in rows_of(out)] == ["1", "3", "2", "0"]


def test_a_damaged_line_stops_the_run_and_is_named(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    predict(folder, samples[:2], out, max_new_tokens=2, quiet=True)
    before = out.read_bytes()
    out.write_bytes(b"{broken\n" + before)
    with pytest.raises(UserError, match="p.jsonl, line 1"):
        predict(folder, samples, out, max_new_tokens=2, quiet=True)
    assert out.read_bytes().endswith(before)


# --- answers only, speed --------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["yes-no", "bare"])
def test_answer_only_reads_p_yes_where_generation_would_choose(
    folder: Path, samples: list[Sample], prompt: str
) -> None:
    model, processor = load_model(folder)
    images = [[open_image(s.image)] for s in samples]
    forced, yes, no = prediction._choice(processor, tagged=prompt == "bare")
    assert forced == ("<think></think>" if prompt == "bare" else "")
    assert not forced or processor.tokenizer.decode(yes + no) == "<location><answer>"
    made = prediction.answer_only(model, processor, images, prompt=prompt)
    for group, (word, p, _) in zip(images, made, strict=True):
        text = processor.apply_chat_template(prompt_messages(prompt), add_generation_prompt=True) + forced
        inputs = processor(images=[group], text=[text], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            chances = model(**inputs).logits[0, -1].softmax(-1)
        wanted = float(chances[yes].sum() / (chances[yes].sum() + chances[no].sum()))
        assert p == pytest.approx(wanted, abs=1e-5) and word == ("Yes" if p > 0.5 else "No")


def test_answer_only_rows_are_of_a_protocol_of_their_own(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    rows = rows_of(predict(folder, samples, tmp_path / "p.jsonl", answer_only=True, quiet=True))
    assert {r["protocol"] for r in rows} == {"course, answer only"} and len(rows) == len(samples)


def test_speed_says_where_the_time_goes(folder: Path, samples: list[Sample]) -> None:
    found = speed.measure(folder, samples, batch_size=3, max_new_tokens=5)
    parts = {"decode", "processor", "prefill", "steps", "choosing", "parsing"}
    assert set(found.seconds) == parts and all(spent >= 0 for spent in found.seconds.values())
    assert found.images == 6 and found.seconds["steps"] > 0
    assert sum(found.seconds.values()) == pytest.approx(6 / found.images_per_second, rel=0.1)
    assert speed.measure(folder, samples, answer_only=True).seconds["steps"] == 0


# --- length, grid, resume --------------------------------------------------------------------------------


def test_answers_without_their_end_are_marked_as_cut(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    model, processor = load_model(folder)
    images = [[open_image(s.image)] for s in samples]
    free = generate(model, processor, images, max_new_tokens=4)
    assert all(said.cut for said in free)  # random weights do not end by themselves
    model.generation_config.forced_eos_token_id = processor.tokenizer.eos_token_id
    assert not any(said.cut for said in generate(model, processor, images, max_new_tokens=4))
    out = predict(folder, samples, tmp_path / "p.jsonl", max_new_tokens=4, quiet=True)
    assert all(row["cut"] == 4 for row in rows_of(out))
    for length in (6, 5):  # a larger limit is a new question, a smaller one is not
        predict(folder, samples, out, max_new_tokens=length, quiet=True)
        assert [row["cut"] for row in rows_of(out)] == [6] * len(samples)
    table = scoring.score(scoring.read_predictions(out))
    assert table.loc[table["metric"] == "cut", "value"].tolist() == [len(samples)]
    old = [{key: value for key, value in row.items() if key != "cut"} for row in rows_of(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in old))
    table = scoring.score(scoring.read_predictions(out))
    assert "cut" not in set(table["metric"])
    assert predict(folder, samples, out, max_new_tokens=4, quiet=True) and rows_of(out) == old  # such rows stay


def write_stage(folder: Path, tmp_path: Path, **note: Any) -> Path:
    """A copy of the model in a stage's folder with a note of the training."""
    made = shutil.copytree(folder, tmp_path / "stage" / "model")
    (tmp_path / "stage" / "stage.json").write_text(json.dumps(note))
    return made


@pytest.mark.parametrize(("trained", "longest"), [(None, 96), (50, 96), (400, 500)])
def test_the_longest_answer_is_the_familys_or_what_training_needs(
    folder: Path, tmp_path: Path, trained: int | None, longest: int
) -> None:
    made = write_stage(folder, tmp_path, **({"answer_tokens": trained} if trained else {}))
    assert prediction.longest_answer(made) == longest
    for name in ("fair", "released"):
        assert prediction.longest_answer(made, protocol(name, "mini", "tuned")) == longest
    assert prediction.longest_answer(made, protocol("released", "qwen", "tuned")) == 512
    (made / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    assert prediction.longest_answer(made) == 512
    (made.parent / "stage.json").write_text(json.dumps({"answer_tokens": "many"}))
    with pytest.raises(UserError, match="answer_tokens 'many'"):
        prediction.longest_answer(made)


def test_a_model_of_another_grid_is_judged_by_its_own_places(folder: Path, tmp_path: Path) -> None:
    pixels = np.zeros((60, 60), np.uint8)
    pixels[32:40, 32:40] = 255  # the center of 3 x 3, the bottom right of 2 x 2
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    sample = Sample(str(tmp_path / "a.png"), "yes", str(tmp_path / "mask.png"), "hole", "center", "c", "t", "test", "x")
    unknown = replace(sample, image=str(tmp_path / "b.png"), mask=None, location="center")
    Image.new("RGB", (60, 60), "red").save(tmp_path / "b.png")
    made = write_stage(folder, tmp_path, grid=2)
    out = predict(made, [sample, unknown], tmp_path / "p.jsonl", max_new_tokens=2, quiet=True)
    rows = rows_of(out)
    assert [(row["location"], row["grid"]) for row in rows] == [("bottom right", 2), (None, 2)]
    answer = "<location>bottom right</location><type>hole</type><answer>Yes</answer>"
    out.write_text("".join(json.dumps(row | {"raw": answer}) + "\n" for row in rows))
    table = scoring.read_predictions(out)
    assert scoring.judge(table)["location_right"].tolist()[0] == 1
    assert scoring.grounding(table, [sample, unknown]).query("benchmark == 't'")["value"].tolist() == [100]
    predict(folder, [sample, unknown], out, max_new_tokens=2, quiet=True)  # the usual grid: all asked anew
    assert all("grid" not in row for row in rows_of(out)) and len(rows_of(out)) == 2
    out.write_text(
        "".join(json.dumps(row | grid) + "\n" for row, grid in zip(rows, ({"grid": 2}, {"grid": 4}), strict=True))
    )
    with pytest.raises(UserError, match="different grids"):
        scoring.read_predictions(out)


@pytest.mark.parametrize("kind", ["bom", "crlf", "no last line end", "cut", "cut in a letter"])
def test_a_run_goes_on_whatever_wrote_its_file(folder: Path, samples: list[Sample], tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"batch_size": 2, "max_new_tokens": 4, "quiet": True}
    whole = predict(folder, samples, tmp_path / "p.jsonl", **options)
    text = whole.read_text()
    content = {
        "bom": text.encode("utf-8-sig"),
        "crlf": text.replace("\n", "\r\n").encode(),
        "no last line end": text[:-1].encode(),
        "cut": text[:-30].encode(),
        "cut in a letter": (text + '{"image": "gr').encode() + "ö".encode()[:1],
    }
    (tmp_path / "q.jsonl").write_bytes(content[kind])
    assert predict(folder, samples, tmp_path / "q.jsonl", **options).read_text() == text
    assert not (tmp_path / "q.jsonl.old").exists()
    (tmp_path / "q.jsonl").write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        predict(folder, samples, tmp_path / "q.jsonl", **options)
    assert (tmp_path / "q.jsonl").read_bytes() == text.encode("utf-16")
