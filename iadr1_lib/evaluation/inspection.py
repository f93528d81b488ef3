"""Judging single pictures, with good pictures to compare with where some are at hand.

inspector = Inspector(model_dir, references=[good])
inspector.judge([picture])            # answer, P(Yes), heat map of distances
inspector.threshold(good_pictures)    # where P(Yes) begins to be unusual
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iadr1_lib.data import to_rgb
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import prediction
from iadr1_lib.models import UNLIKE, compare, load_model


class Finding(NamedTuple):
    """What a model says of one picture.

    Attributes:
        raw: the answer; `cut` if the limit of length ended it.
        p_yes: in one pass without reasoning (`prediction.answer_only`); None where the model cannot be asked so.
        heat: how unlike the references, or the rest of the picture, each place is (rows, columns); None for a model
            that does not compare.
        remark: a sentence where the reference is of no use.
    """

    raw: str
    cut: bool
    p_yes: float | None
    heat: NDArray[np.float64] | None
    remark: str | None


class Inspector:
    """A model with references; it is loaded once.

    Raises:
        UserError: there is no model, or it can be shown one reference and there are more.
    """

    def __init__(self, model_dir: Path | str, prompt: str = "bare", references: Sequence[Image.Image] = ()) -> None:
        self.compares = prediction.compares_with_several(model_dir)
        if len(references) > 1 and not self.compares:
            raise UserError(f"{model_dir} can be shown one reference, not {len(references)}: give one --reference")
        self.model, self.processor = load_model(model_dir)
        self.prompt, self.length = prompt, prediction.longest_answer(model_dir)
        self.direct = prediction.answer_only_prompt(model_dir, prompt)
        self.references = [to_rgb(reference) for reference in references]

    def judge(self, pictures: Sequence[Image.Image]) -> list[Finding]:
        """A finding for each picture, asked together."""
        shown = [to_rgb(picture) for picture in pictures]
        questions = [prediction.compared_with(picture, self.references) for picture in shown]
        answers = prediction.ask(self.model, self.processor, questions, self.prompt, self.length)
        chances = self.p_yes(shown)
        findings = []
        for picture, answer, p_yes in zip(shown, answers, chances, strict=True):
            compared = compare(picture, self.references) if self.compares else None
            remark = self._remark(picture, compared.typical if compared else 0.0)
            findings.append(Finding(answer.raw, answer.cut, p_yes, compared.heat if compared else None, remark))
        return findings

    def p_yes(self, pictures: Sequence[Image.Image]) -> list[float]:
        """P(Yes) of each picture in one pass, without reasoning."""
        questions = [prediction.compared_with(to_rgb(picture), self.references) for picture in pictures]
        only = prediction.answer_only(self.model, self.processor, questions, prompt=self.direct)
        return [float(answer.p_yes or 0.0) for answer in only]

    def threshold(self, good: Sequence[Image.Image], false_alarms: float) -> float:
        """The P(Yes) that at most a share `false_alarms` of these good pictures exceeds."""
        return float(np.quantile(self.p_yes(good), 1 - false_alarms, method="higher"))

    def odd_references(self) -> list[int]:
        """Places of references that the model calls defective beside the others, of which it needs two."""
        if len(self.references) < 3 or not self.compares:
            return []
        odd = []
        for place, reference in enumerate(self.references):
            others = [other for number, other in enumerate(self.references) if number != place]
            question = prediction.compared_with(reference, others)
            [answer] = prediction.answer_only(self.model, self.processor, [question], prompt=self.direct)
            odd += [place] if answer.raw == "Yes" else []
        return odd if len(odd) < len(self.references) / 2 else []

    def _remark(self, picture: Image.Image, typical: float) -> str | None:
        if any(picture.size == one.size and picture.tobytes() == one.tobytes() for one in self.references):
            return "this picture is itself a reference: it is compared with itself"
        if self.references and typical > UNLIKE:
            return f"the reference shows something else (typical distance {typical:.2f}): take one of the same kind"
        return None
