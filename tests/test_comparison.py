"""The model `photo`: distances to references, rows of pixels, saving and loading, answers with references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from iadr1_lib.evaluation import prediction
from iadr1_lib.evaluation.inspection import Inspector
from iadr1_lib.models import (
    build_photo,
    build_photo_processor,
    build_tokenizer,
    compare,
    comparison,
    load_model,
    with_references,
)
from iadr1_lib.models.comparison import CELLS, KINDS, SIDE, STRIDES, TOKENS, describe, distances


def noise(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and a processor, saved."""
    torch.manual_seed(0)
    processor = build_photo_processor(build_tokenizer(tiny_vlm.CORPUS, vocabulary=340))
    model = build_photo(processor.tokenizer, width=16, num_hidden_layers=1, num_attention_heads=2, directions=4).eval()
    with torch.no_grad():
        model.model.vision_tower.directions.normal_()
    path = tmp_path_factory.mktemp("photo")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def features(picture: Image.Image) -> Any:
    return describe(torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()))


def test_a_picture_is_at_no_distance_from_itself_and_near_the_nearest_of_several() -> None:
    own, one, other = features(noise(0)), features(noise(1)), features(noise(2))
    planes = distances(own, [own]).unflatten(0, (len(KINDS), len(STRIDES)))
    assert planes[:3].abs().max() < 1e-5 and planes[3].min() >= 0
    first, second = (distances(own, [reference]) for reference in (one, other))
    both = distances(own, [one, other])
    compared = 3 * len(STRIDES)
    assert (both[:compared] <= torch.minimum(first, second)[:compared] + 1e-6).all()
    assert not distances(own, [])[:compared].any() and distances(own, [])[compared:].equal(both[compared:])


def test_what_differs_stands_out_where_it_is() -> None:
    good = noise(3)
    marked = good.copy()
    marked.paste((255, 0, 0), (200, 200, 240, 240))
    heat = compare(marked, [good]).heat
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert heat.shape == (CELLS, CELLS) and row >= CELLS * 2 // 3 and column >= CELLS * 2 // 3


def test_pixels_are_rows_of_a_picture_and_its_references(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    prepare = processor.image_processor
    a, b, c = noise(0, (50, 90)), noise(1).convert("L"), noise(2)
    rows = prepare([[a], [b, a], [b, with_references(a, [c])]])["pixel_values"]
    assert rows.shape == (5, 3, 3, SIDE, SIDE) and rows.dtype == np.uint8
    assert (rows[0, 0] == rows[2, 0]).all() and (rows[2, 1] == rows[1, 0]).all() and not rows[2, 2].any()
    assert (rows[4, 1] == rows[1, 0]).all() and rows[4, 2].any() and not rows[1, 1:].any()
    text = processor.apply_chat_template(prediction.prompt_messages("bare", 2), add_generation_prompt=True)
    ids = processor(images=[[b, with_references(a, [c])]], text=[text])["input_ids"][0]
    assert ids.count(processor.tokenizer.convert_tokens_to_ids("<image>")) == 2 * TOKENS**2


def test_tokens_of_a_picture_do_not_depend_on_its_batch_and_survive_saving(folder: Path, tmp_path: Path) -> None:
    model, processor = load_model(folder)
    tower = model.model.vision_tower
    rows = torch.from_numpy(processor.image_processor([[noise(0)], [noise(1), noise(2)]])["pixel_values"])
    together = tower(rows).last_hidden_state
    comparison._measured.clear()
    alone = torch.cat([tower(row[None]).last_hidden_state for row in rows])
    assert together.shape == (3, TOKENS**2, model.config.vision_config.hidden_size)
    assert torch.allclose(together, alone, atol=1e-5) and not torch.allclose(together[1], together[2])
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).model.vision_tower
    assert torch.allclose(again(rows).last_hidden_state, together, atol=1e-5)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 8e6  # without EfficientNet


def test_what_is_measured_of_a_picture_serves_all_models_of_one_base(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (load_model(folder)[0].model.vision_tower for _ in range(2))
    row = torch.from_numpy(load_model(folder)[1].image_processor([[noise(7), noise(8)]])["pixel_values"])[-1]
    measured = first.maps(row)
    monkeypatch.setattr(comparison, "describe", lambda picture: pytest.fail("described again"))
    assert (second.maps(row) == measured).all()
    monkeypatch.undo()
    second.mean += 1  # another base
    assert not (second.maps(row) == measured).all()


def test_a_model_answers_with_none_one_and_four_references(folder: Path) -> None:
    model, processor = load_model(folder)
    pictures = [noise(seed) for seed in range(6)]
    for references in ([], pictures[1:2], pictures[1:5]):
        question = prediction.compared_with(pictures[0], references)
        assert len(question) == 1 + bool(references)
        nearest = min(references, key=lambda one: compare(pictures[0], [one]).typical, default=None)
        assert nearest is None or question[0] is nearest
        [answer] = prediction.generate(model, processor, [question], max_new_tokens=3)
        [only] = prediction.answer_only(model, processor, [question])
        assert isinstance(answer.raw, str) and only.p_yes is not None
    assert prediction.compares_with_several(folder)


def test_an_inspector_says_what_is_odd_about_its_references_and_sets_a_threshold(folder: Path) -> None:
    good = [noise(seed) for seed in range(4)]
    inspector = Inspector(folder, references=good[:1])
    own, other = inspector.judge([good[0], good[1]])
    assert own.remark and "itself a reference" in own.remark
    assert own.heat is not None and own.heat.max() < 1e-5 and 0 <= (other.p_yes or 0) <= 1
    chances = inspector.p_yes(good)
    limit = inspector.threshold(good, 0.25)
    assert sum(p > limit for p in chances) <= 1 and limit in chances
