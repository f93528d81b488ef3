"""Making the base weights (data/mini_base_build.py): what the generic lessons may say, how they are packed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch

from iadr1_lib import world
from iadr1_lib.answer import CELLS, QUESTION, TAGS
from iadr1_lib.models import load_model

SPEC: Any = importlib.util.spec_from_file_location(
    "mini_base_build", Path(__file__).parents[1] / "data" / "mini_base_build.py"
)
base: Any = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = base  # dataclasses look their module up there
SPEC.loader.exec_module(base)
SMALL = base.BaseSettings(seeing_steps=2, talking_steps=2, batch=4, questions=2, families=4, scenes=8)


@pytest.fixture(scope="module")
def scenes() -> list[Any]:
    rng = np.random.default_rng(0)
    return [base.draw_scene(f, rng) for f in base.base_families(24) for _ in range(6)]


def test_the_base_never_hears_of_inspection(scenes: list[Any]) -> None:
    rng = random.Random(0)
    talk = "\n".join(text for scene in scenes for pair in base.talk(scene, 20, rng) for text in pair)
    assert "defect" not in talk.lower() and QUESTION.lower() not in talk.lower()
    assert not [tag for tag in TAGS if tag in talk]


def test_yes_and_no_come_equally_often_and_are_true(scenes: list[Any]) -> None:
    rng = random.Random(1)
    closed = []
    for scene in scenes:
        names = [name for name, _, _ in scene.marks]
        for question, answer in base.talk(scene, 20, rng)[1::2]:
            closed.append((question, answer))
            word = question.split()[3]
            if question.startswith("Is there a "):
                assert (word in names) == (answer == "Yes")
            elif question.startswith("Is the surface "):
                assert (word == scene.colour) == (answer == "Yes")
    assert {answer for _, answer in closed} == {"Yes", "No"}
    for part in (closed, [p for p in closed if p[0].endswith("yes or no .")], [p for p in closed if "surface" in p[0]]):
        assert 0.42 < np.mean([a == "Yes" for _, a in part]) < 0.58


def test_scenes_are_labelled_where_marks_are() -> None:
    rng = np.random.default_rng(5)
    for family in base.base_families(12):
        scene = base.draw_scene(family, rng, base.MANY)
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert scene.patch_labels.shape == (8, 8)
        assert len(scene.marks) in base.MANY and {cell for _, _, cell in scene.marks} <= set(CELLS)
        assert set(np.unique(scene.patch_labels)) <= {0} | {1 + base.MARKS.index(n) for n, _, _ in scene.marks}
        assert len(base.draw_scene(family, rng).marks) in base.FEW


def test_base_families_share_no_seed_with_others_and_no_texture_with_test() -> None:
    ours, tests = base.base_families(300), [f for group in world.test_families().values() for f in group]
    others = [*world.train_families(300), *world.dev_families(), *tests]
    assert len({f.seed for f in ours}) == 300 and not {f.seed for f in ours} & {f.seed for f in others}
    assert not {f.texture for f in tests} & {f.texture for f in ours}


def test_packed_questions_see_only_the_picture_and_themselves(scenes: list[Any]) -> None:
    model, processor = tiny_vlm.build()
    scene = next(s for s in scenes if s.marks)
    pairs = [
        ("What texture is this ?", "wood"),
        ("Is there a ring ?", "No"),
        ("What is in the image ?", "a grey disc ."),
    ]

    def logits(pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels, positions, mask = base.packed([(1, pairs)], processor, base.PATCHES**2)
        with torch.no_grad():
            out = model(
                input_ids=ids, pixel_values=base._pixels([scene]), attention_mask=mask, position_ids=positions
            ).logits[0]
        return out[labels[0] != -100], labels[0][labels[0] != -100]

    packed, packed_labels = logits(pairs)
    alone = [logits([pair]) for pair in pairs]
    assert torch.equal(packed_labels, torch.cat([labels for _, labels in alone]))
    torch.testing.assert_close(packed, torch.cat([values for values, _ in alone]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pictures", [1, 2])
def test_packed_rows_are_what_the_chat_template_gives(scenes: list[Any], pictures: int) -> None:
    _, processor = tiny_vlm.build()
    ids = base.packed([(pictures, [("What is this ?", "wood")])], processor, base.PATCHES**2)[0][0]
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": "What is this ?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "wood"}]
    shown = [[tiny_vlm.Image.fromarray(scene.image) for scene in scenes[:pictures]]]
    inputs = processor(images=shown, text=[processor.apply_chat_template(messages)], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ids.tolist()
    torch.testing.assert_close(inputs["pixel_values"], base._pixels(scenes[:pictures]), atol=1e-5, rtol=0)


def test_muon_solves_a_least_squares_problem() -> None:
    torch.manual_seed(0)
    for shape in ((6, 6), (4, 10), (10, 4)):
        sizes = torch.linalg.svdvals(base._orthogonal(torch.randn(shape)))
        assert (sizes > 0.3).all() and (sizes < 1.4).all()
    weight, x = torch.nn.Parameter(torch.zeros(4, 3)), torch.randn(64, 3)
    wanted, optimiser = x @ torch.randn(3, 4), base.Muon([weight], lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        loss = ((x @ weight.T - wanted) ** 2).mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.02 * (wanted**2).mean()


def test_the_build_writes_a_model_with_its_origin_the_same_for_a_seed(tmp_path: Path) -> None:
    first = base.build_base(tmp_path / "a", seed=4, settings=SMALL)
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
    second = base.build_base(tmp_path / "b", seed=4, settings=SMALL)
    assert (second / "SHA256SUMS").read_text() == (first / "SHA256SUMS").read_text()
