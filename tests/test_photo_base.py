"""Making the base weights of `photo` (data/photo_model_build.py): what its lessons may say, and that it runs."""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import test_photographs
import torch
from PIL import Image

from iadr1_lib.answer import DEFECT_TYPES, QUESTION, TAGS
from iadr1_lib.evaluation import prediction
from iadr1_lib.models import load_model

sys.path.append(str(Path(__file__).parents[1] / "data"))  # the processes that the build starts look there, too
photo: Any = importlib.import_module("photo_model_build")
textures = test_photographs.textures


def scene(mark: str | None, cell: str | None) -> Any:
    return photo.Scene(torch.zeros(0), torch.zeros(0), "Cork", "disc", mark, cell)


def test_the_base_never_hears_of_inspection_and_is_told_the_truth() -> None:
    rng, said = random.Random(0), []
    for mark, cell in (("stain", "top left"), (None, None)):
        for compared in (False, True):
            pairs = photo.talk(scene(mark, cell), compared, 400, rng)
            said += pairs
            answers = dict(pairs)
            assert answers["Where is a mark ?"] == (cell or "nowhere")
            assert answers["Is there any mark ?"] == ("Yes" if mark else "No")
            assert ("What is different ?" in answers) == compared
            for question, answer in pairs:
                if question.startswith("Is there a ") and "mark" not in question:
                    assert (question.split()[3] == mark) == (answer == "Yes")
    text = "\n".join(part for pair in said for part in pair).lower()
    assert "defect" not in text and QUESTION.lower() not in text
    assert not [word for word in (*TAGS, *DEFECT_TYPES) if word in text]


@pytest.mark.slow
def test_the_build_writes_a_model_that_answers(textures: Path, tmp_path: Path) -> None:
    settings = photo.PhotoSettings(scenes=16, seeing_epochs=1, talking_steps=2, batch=4, questions=2, directions=4)
    out = photo.build_photo_base(tmp_path / "base", textures, seed=3, settings=settings)
    assert json.loads((out / "build.json").read_text())["seed"] == 3
    model, processor = load_model(out)
    picture = Image.new("RGB", (60, 40), "grey")
    [answer] = prediction.generate(model, processor, [[picture, picture]], max_new_tokens=3)
    assert isinstance(answer.raw, str) and (model.model.vision_tower.map_deviation != 1).any()
