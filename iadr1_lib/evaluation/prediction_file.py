"""The file of predictions, one JSON line per picture: its row, its reader, and what is left to ask after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iadr1_lib.answer import GRID, Label
from iadr1_lib.errors import UserError
from iadr1_lib.files import json_lines, read_json_lines, write_text
from iadr1_lib.records import Sample

_Name = Annotated[str, Field(pattern=r"\S")]
_TRUTH = ("image", "category", "benchmark", "label", "location", "type")


class _Prediction(BaseModel):
    """What a line must hold to be scored. Other keys that a row may have: cut, refused, reference."""

    model_config = ConfigDict(strict=True)

    image: _Name
    category: _Name
    benchmark: _Name
    label: Label
    location: str | None
    type: str | None
    raw: str
    p_yes: Annotated[float | None, Field(ge=0, le=1)]
    prompt: Any
    protocol: _Name
    model: Any
    seed: Any
    grid: Annotated[int, Field(ge=1, le=5)] = GRID


PREDICTION_KEYS = tuple(key for key, field in _Prediction.model_fields.items() if field.is_required())


def prediction_row(
    sample: Sample, raw: str, p_yes: float | None, origin: dict[str, Any], cut: int | bool = False
) -> dict[str, Any]:
    """A sample with its truth, the model's text, and how it was asked; keys as PREDICTION_KEYS.

    `origin` holds prompt, protocol, model and seed (and grid, where it is not the usual one), the same in all rows of a
    file. An answer that the limit of length ended has that limit as `cut` (true, where only the provider knows it).
    """
    return _truth(sample) | {"raw": raw, "p_yes": p_yes} | origin | ({"cut": cut} if cut else {})


def _truth(sample: Sample) -> dict[str, Any]:
    return {key: getattr(sample, key) for key in _TRUTH}


def read_predictions(path: str | Path) -> pd.DataFrame:
    """One row per answered image, from JSON Lines with the keys PREDICTION_KEYS.

    UserError for a missing or empty file, a line that is cut off or damaged (with its number), an image that is
    answered twice, and answers that name places on different grids.
    """
    if not Path(path).is_file():
        raise UserError(f"There are no predictions at {path}: run the evaluation that writes them first.")
    rows = read_json_lines(path)
    for number, row in rows:
        try:
            _Prediction.model_validate(row)
        except ValidationError as error:
            fault = error.errors()[0]
            key = " ".join(map(str, fault["loc"])) or "line"
            raise UserError(
                f"{path}, line {number} is no prediction ({key}: {fault['msg']}): delete the line and run the "
                "evaluation again, which answers only what is missing."
            ) from None
    if not rows:
        raise UserError(f"{path} holds no prediction: delete it and run the evaluation again.")
    frame = pd.DataFrame([row for _, row in rows])
    twice = frame.loc[frame.duplicated(["benchmark", "image"]), "image"]
    if len(twice):
        raise UserError(f"{path} answers {twice.iloc[0]} twice: keep one line of each image.")
    if "grid" in frame and frame["grid"].nunique(dropna=False) > 1:
        raise UserError(f"{path} holds answers on different grids of places: keep one file for each grid.")
    return frame


def finished_images(
    samples: Sequence[Sample],
    out: Path,
    origin: dict[str, Any],
    references: Mapping[str, Sequence[Path]] | None = None,
    longest: int = 0,
) -> set[str]:
    """Which of the samples' images are already answered in `out`, of which only these answers are kept.

    A half-written last line (a killed run) is cut off. Answers are dropped where the picture is not asked about any
    more or its truth has changed, where model, prompt, protocol, seed or reference differ, and where they were cut at
    fewer tokens than `longest`; the file as it was then stays as <name>.old.
    """
    if not out.exists():
        return set()
    rows = read_json_lines(out, unfinished=True)
    wanted = {sample.image: json.loads(json.dumps(_truth(sample) | origin)) for sample in samples}
    kept = {}
    for number, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise UserError(f"{out}, line {number} is no prediction: delete the line and run again; the rest is kept")
        image = row["image"]
        reference = next(iter((references or {}).get(image, [])), None)
        if (
            image in wanted
            and wanted[image].items() <= row.items()
            and ("grid" in row) == ("grid" in origin)
            and row.get("reference") == (reference and str(reference))
            and not 0 < row.get("cut", 0) < longest
        ):
            kept[image] = row
    if len(kept) < len(rows):
        shutil.copyfile(out, out.with_name(out.name + ".old"))
    content = json_lines(kept.values(), ascii_only=True)
    if content.encode() != out.read_bytes():
        write_text(out, content)
    return set(kept)
