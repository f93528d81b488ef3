"""Making the base weights: what the generic lessons may say, how they are packed, what is written."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch

from iadr1_lib import world as synthetic
from iadr1_lib.answer import CELLS, QUESTION, TAGS
from iadr1_lib.course import base
from iadr1_lib.course.base import FEW, MANY, BaseSettings, base_families, build_base, draw_scene, talk
from iadr1_lib.models import load_model

SMALL = BaseSettings(seeing_steps=2, talking_steps=2, batch=4, questions=2, families=4, scenes=8)


@pytest.fixture(scope="module")
def scenes() -> list[base.Scene]:
    rng = np.random.default_rng(0)
    return [draw_scene(f, rng) for f in base_families(24) for _ in range(6)]


def test_the_base_never_hears_of_inspection(scenes: list[base.Scene]) -> None:
    rng = random.Random(0)
    said = "\n".join(text for scene in scenes for pair in talk(scene, 20, rng) for text in pair)
    assert "defect" not in said.lower()
    assert QUESTION.lower() not in said.lower()
    assert not [tag for tag in TAGS if tag in said]


def test_yes_and_no_come_equally_often_whatever_is_asked(scenes: list[base.Scene]) -> None:
    rng = random.Random(1)
    pairs = [pair for scene in scenes for pair in talk(scene, 20, rng)]
    closed = [(q, a) for q, a in pairs if a in ("Yes", "No")]
    assert len(closed) == len(pairs) // 2
    for part in (closed, [p for p in closed if p[0].endswith("yes or no .")], [p for p in closed if "surface" in p[0]]):
        assert 0.42 < np.mean([a == "Yes" for _, a in part]) < 0.58


def test_closed_answers_are_true(scenes: list[base.Scene]) -> None:
    rng = random.Random(2)
    for scene in scenes:
        names = [name for name, _, _ in scene.marks]
        for question, answer in talk(scene, 30, rng)[1::2]:
            words = question.split()
            if question.startswith("Is there a "):
                assert (words[3] in names) == (answer == "Yes")
            elif question.startswith("Is the surface "):
                assert (words[3] == scene.colour) == (answer == "Yes")


def test_scenes_are_labelled_where_marks_are() -> None:
    rng = np.random.default_rng(5)
    for family in base_families(12):
        scene = draw_scene(family, rng, MANY)
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert scene.patch_labels.shape == (8, 8)
        assert len(scene.marks) in MANY
        assert {cell for _, _, cell in scene.marks} <= set(CELLS)
        assert set(np.unique(scene.patch_labels)) <= {0} | {1 + base.MARKS.index(n) for n, _, _ in scene.marks}
        assert len(draw_scene(family, rng).marks) in FEW


def test_base_families_are_the_base_s_own() -> None:
    ours = {f.seed for f in base_families(300)}
    others = [*synthetic.train_families(300), *synthetic.dev_families()]
    others += [f for families in synthetic.test_families().values() for f in families]
    assert len(ours) == 300
    assert not ours & {f.seed for f in others}
    tested = {f.texture for families in synthetic.test_families().values() for f in families}
    assert not tested & {f.texture for f in base_families(300)}


def test_packed_questions_see_only_the_picture_and_themselves(
    scenes: list[base.Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_vlm.build()
    scene = next(s for s in scenes if s.marks)
    pairs = [
        ("What texture is this ?", "wood"),
        ("Is there a ring ?", "No"),
        ("What is in the image ?", "a grey disc ."),
    ]

    def logits(said: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(base, "talk", lambda scene, count, rng: said)
        ids, labels, positions, mask = base._packed([scene], processor, len(said), random.Random(0))
        pictures: Any = {"pixel_values": base._pixels([scene]), "attention_mask": mask, "position_ids": positions}
        with torch.no_grad():
            out = model(input_ids=ids, **pictures).logits[0]
        return out[labels[0] != -100], labels[0][labels[0] != -100]

    packed, packed_labels = logits(pairs)
    alone = [logits([pair]) for pair in pairs]
    assert torch.equal(packed_labels, torch.cat([labels for _, labels in alone]))
    torch.testing.assert_close(packed, torch.cat([values for values, _ in alone]), atol=1e-4, rtol=0)


def test_packed_rows_are_what_the_chat_template_gives(
    scenes: list[base.Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = tiny_vlm.build()
    monkeypatch.setattr(base, "talk", lambda scene, count, rng: [("What is this ?", "wood")])
    ids = base._packed(scenes[:1], processor, 1, random.Random(0))[0][0]
    content = [{"type": "image"}, {"type": "text", "text": "What is this ?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "wood"}]
    text = processor.apply_chat_template(messages)
    picture = tiny_vlm.Image.fromarray(scenes[0].image)
    asked = processor(images=[[picture]], text=[text], return_tensors="pt")
    assert asked["input_ids"][0].tolist() == ids.tolist()
    torch.testing.assert_close(asked["pixel_values"], base._pixels(scenes[:1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_muon_s_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    update = base._orthogonal(matrix)
    sizes = torch.linalg.svdvals(update)
    assert (sizes > 0.3).all() and (sizes < 1.4).all()
    assert (update * matrix).sum() > 0


def test_muon_solves_a_least_squares_problem() -> None:
    torch.manual_seed(0)
    weight, x = torch.nn.Parameter(torch.zeros(4, 3)), torch.randn(64, 3)
    wanted, optimiser = x @ torch.randn(3, 4), base.Muon([weight], lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        loss = ((x @ weight.T - wanted) ** 2).mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.02 * (wanted**2).mean()


def test_position_waves_are_alike_for_near_patches() -> None:
    waves = base._position_waves(192)
    assert waves.shape == (64, 192)
    likeness = torch.nn.functional.cosine_similarity(waves[0], waves, dim=-1)
    assert likeness[0] > likeness[1] > likeness[2] > likeness[63]


def test_build_base_writes_a_model_with_its_origin_the_same_for_a_seed(tmp_path: Path) -> None:
    first = build_base(tmp_path / "a", seed=4, settings=SMALL)
    facts = json.loads((first / "build.json").read_text())
    assert facts["seed"] == 4 and facts["settings"] == asdict(SMALL)
    assert (first / "log.csv").read_text().startswith("lesson,step,seconds,loss")
    for line in (first / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((first / name).read_bytes()).hexdigest() == digest
    model, processor = load_model(first)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    text = f"<think>I scan the whole image .</think> {QUESTION}"
    assert processor.decode(processor.tokenizer(text, add_special_tokens=False).input_ids) == text
    second = build_base(tmp_path / "b", seed=4, settings=SMALL)
    assert (second / "SHA256SUMS").read_text() == (first / "SHA256SUMS").read_text()
    other = build_base(tmp_path / "c", seed=5, settings=SMALL)
    assert (other / "SHA256SUMS").read_text() != (first / "SHA256SUMS").read_text()
