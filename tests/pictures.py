"""Small pictures and masks on disk, for the tests of readers and checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iadr1_lib.answer import QUESTION, build_answer, build_solution
from iadr1_lib.data import check_health
from iadr1_lib.errors import UserError
from iadr1_lib.files import write_json
from iadr1_lib.records import Sample


def draw(path: Path, size: tuple[int, int] = (30, 20), mode: str = "RGB") -> Path:
    """Write a picture whose content comes from its path, so that no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def draw_mask(
    path: Path, box: tuple[int, int, int, int] | None = (0, 0, 4, 4), size: tuple[int, int] = (30, 20)
) -> Path:
    """Write a mask that is white in a box, or nowhere."""
    mask = Image.new("L", size)
    if box:
        mask.paste(255, box)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path)
    return path


def index_entry(path: str, answer: str, **more: object) -> dict[str, Any]:
    """An entry of the released test index; answer "A" is Yes, "B" is No."""
    return {"image_path": path, "conversation": [{"Answer": answer, "Options": {"A": "Yes.", "B": "No."}}], **more}


def problem_kinds(samples: Iterable[Sample]) -> Counter[str]:
    return Counter(problem.kind for problem in check_health(samples))


def one_sentence(call: Callable[[], Any], *parts: object) -> None:
    """The call ends in a UserError of one line that holds the parts."""
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(str(part) in text for part in parts), text


def released_records(folder: Path, each: int = 6) -> Path:
    """A copy of Expert-AD in its released formats: `each` pictures for either stage, labels in turn."""
    answers = [(build_answer("All is well.", "no"), build_solution("no"))]
    answers += [(build_answer("A stain.", "yes", "center", "stain"), build_solution("yes", "center", "stain"))]
    sft, grpo = [], []
    for number in range(each):
        answer, solution = answers[number % 2]
        first, second = (draw(folder / f"{stage}/bolt/{number}.png") for stage in ("first", "second"))
        turns = [{"role": "user", "content": f"<image>\n{QUESTION}"}, {"role": "assistant", "content": answer}]
        sft.append({"images": str(first.relative_to(folder)), "messages": turns})
        image = str(second.relative_to(folder))
        grpo.append({"id": number, "image": image, "problem": QUESTION, "solution": solution})
    write_json(folder / "pa_sft.json", sft)
    write_json(folder / "sc_grpo.json", grpo)
    return folder


def released_tests(
    folder: Path, names: Iterable[str] = ("DS-MVTec", "VisA", "MPDD", "DAGM", "DTD", "SDD"), each: int = 4
) -> Path:
    """A copy of the paper's test sets in the released index format, `each` pictures a set, labels in turn."""
    for name in names:
        paths = [f"{name}/bolt/{('good', 'bent')[number % 2]}/{number}.png" for number in range(each)]
        for path in paths:
            draw(folder / path)
        index = {path: index_entry(path, "B" if "good" in path else "A") for path in paths}
        write_json(folder / f"test_{name}_format.json", index)
    return folder
