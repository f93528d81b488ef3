"""How a model is asked at test time: words, image size, sampling, length and parser, as one named protocol.

- ``released``: what the paper's released test scripts do, which differs by family and between base and tuned models
  (the scripts' facts; all words apart from the question are our own).
- ``fair``: one protocol for every model, base, tuned or behind an API.

The course's own headline is a third, ``course``: prompt modes of `PROMPTS`, the question alone for a tuned model and
"yes-no" for the base, read by the parser ``fair``. Nothing here knows of models or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from iadr1_lib.answer import QUESTION
from iadr1_lib.errors import UserError

Name = Literal["released", "fair"]
Kind = Literal["base", "tuned"]
Family = Literal["qwen", "llava-onevision", "llava-1.6", "llava-1.5", "internvl", "commercial", "mini"]
NAMES: tuple[Name, ...] = get_args(Name)
KINDS: tuple[Kind, ...] = get_args(Kind)
FAMILIES: tuple[Family, ...] = get_args(Family)
COURSE = "course"

# "bare" is the question alone, as the tuned models were asked in training. "yes-no" asks for one of two words.
PROMPTS = {"bare": QUESTION, "yes-no": f"{QUESTION} Answer yes or no ."}

_TEST_QUESTION = QUESTION.replace("query image", "test image")
_LEAD_IN = "You are an experienced inspector of products. Your task is to tell whether the picture shows a defect."
_YES_OR_NO = "Answer with one word, yes or no."
_REFERENCE = "The first picture shows a product without defects, for comparison; the second is the one to judge."
_IMAGE = "<image>"
_LONG, _INTERNVL, _COMMERCIAL, _MINI = 512, 128, 600, 96  # new tokens; the mini VLM's longest record has about 50


@dataclass(frozen=True)
class Protocol:
    """One way of asking one kind of model.

    Attributes:
        name: "released" or "fair".
        kind: "base" as published by its makers, "tuned" by PA-SFT or SC-GRPO.
        family: of FAMILIES.
        text: what follows the image, the question included.
        before_image: words in front of the image, or "".
        system: system message, or "".
        temperature, top_p: sampling; temperature 0 is greedy, None leaves it to the provider.
        max_side: longest side of the image in pixels, a larger one is shrunk; None leaves it to the processor.
        max_new_tokens: length of an answer at most.
        parser: of `scoring.PARSERS`.
    """

    name: Name
    kind: Kind
    family: Family
    text: str
    parser: str
    before_image: str = ""
    system: str = ""
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    max_side: int | None = None
    max_new_tokens: int = _LONG

    @property
    def prompt(self) -> str:
        """Everything that is said to the model, `<image>` for the picture; the column ``prompt`` of predictions."""
        return "\n".join(part for part in (self.system, self.before_image, _IMAGE, self.text) if part)

    def messages(self, images: int = 1) -> list[dict[str, Any]]:
        """The chat messages; of two images the first is the reference, which a sentence before it says."""
        asked: list[dict[str, Any]] = [{"type": "text", "text": self.before_image}] if self.before_image else []
        asked += [{"type": "text", "text": _REFERENCE}] if images > 1 else []
        asked += [{"type": "image"}] * images
        asked.append({"type": "text", "text": self.text})
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*system, {"role": "user", "content": asked}]


def _released(family: Family, kind: Kind, text: str, parser: str, **said: Any) -> Protocol:
    return Protocol("released", kind, family, text, parser, **said)


_TAGS, _WORDS, _WORDS_CI = "released-tagged", "released-free-text", "released-free-text-ci"
_OPEN_LEAD_IN = f"{_LEAD_IN} {QUESTION}"  # says what the task is, asks for no form of answer

# The scripts' facts by family and kind. LLaVA-1.5's base is read lowered and not stripped, which differs from the
# parser named here only for an answer of nothing but white space. The mini VLM is asked as OneVision.
_RELEASED: dict[tuple[Family, Kind], Protocol] = {
    (made.family, made.kind): made
    for made in (
        _released("qwen", "tuned", _TEST_QUESTION, _TAGS, top_p=0.8),
        _released("qwen", "base", _TEST_QUESTION, _WORDS, system=_YES_OR_NO, temperature=0.7, top_p=0.8),
        _released("llava-onevision", "tuned", QUESTION, _TAGS),
        _released("llava-onevision", "base", _OPEN_LEAD_IN, _TAGS),
        _released("llava-1.6", "tuned", QUESTION, _TAGS),
        _released("llava-1.6", "base", _OPEN_LEAD_IN, _TAGS),
        _released("llava-1.5", "tuned", _TEST_QUESTION, _TAGS, before_image=_LEAD_IN),
        _released("llava-1.5", "base", f"{_TEST_QUESTION} {_YES_OR_NO}", _WORDS_CI),
        _released("internvl", "base", f"{_LEAD_IN} {QUESTION} {_YES_OR_NO}", _WORDS_CI, max_new_tokens=_INTERNVL),
        _released(
            "commercial",
            "base",
            f"{_TEST_QUESTION} {_YES_OR_NO}",
            _WORDS,
            temperature=None,
            top_p=None,
            max_side=512,
            max_new_tokens=_COMMERCIAL,
        ),
        _released("mini", "tuned", QUESTION, _TAGS, max_new_tokens=_MINI),
        _released("mini", "base", _OPEN_LEAD_IN, _TAGS, max_new_tokens=_MINI),
    )
}


def protocol(name: str, family: str, kind: str) -> Protocol:
    """The protocol of that name for a kind of model.

    ``fair`` asks every model the bare question, with the picture at most 512 pixels wide and high, greedily, and reads
    with the parser ``fair``. The question can be answered by yes or no as it stands, and what is not so answered counts
    as unparsed and is shown. A request for yes or no would pull tuned models away from the words they were trained on
    (measured on dev, LAB_LOG.md). One prompt for all is the point: no cell of a table is flattered by its wording.

    Raises:
        UserError: an unknown name, family or kind, or a kind that the released scripts do not have.
    """
    for what, given, known in (("protocol", name, NAMES), ("family", family, FAMILIES), ("kind", kind, KINDS)):
        if given not in known:
            raise UserError(f"unknown {what} {given!r}: choose one of {', '.join(known)}")
    found = _RELEASED.get((family, kind))  # type: ignore[arg-type]
    if found is None:
        raise UserError(f"the released scripts test no tuned model of the family {family}: ask for kind base")
    if name == "released":
        return found
    length = _MINI if family == "mini" else _LONG
    return Protocol("fair", kind, family, QUESTION, "fair", max_side=512, max_new_tokens=length)  # type: ignore[arg-type]


_FAMILY_OF_TYPE: dict[str, Family] = {
    "qwen2_vl": "qwen",
    "qwen2_5_vl": "qwen",
    "llava_onevision": "llava-onevision",
    "llava_next": "llava-1.6",
    "llava": "llava-1.5",
    "internvl": "internvl",
}


def is_mini(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is the mini VLM's, of LLaVA-1.5's class with Qwen's language model in place of Llama."""
    text = config.get("text_config")
    return config.get("model_type") == "llava" and isinstance(text, Mapping) and text.get("model_type") == "qwen2"


def usual_length(config: Mapping[str, Any]) -> int:
    """Most tokens of an answer of a model that no stage of ours trained."""
    return _MINI if is_mini(config) else _LONG


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a model folder's config.json tells of; UserError for another architecture."""
    if is_mini(config):
        return "mini"
    kind = config.get("model_type")
    if kind not in _FAMILY_OF_TYPE:
        raise UserError(f"no protocol is known for models of type {kind!r}: known are {', '.join(_FAMILY_OF_TYPE)}")
    return _FAMILY_OF_TYPE[kind]
