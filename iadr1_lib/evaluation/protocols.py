"""How a model is asked at test time: words, image size, sampling, length and parser, as one named protocol.

- `released`: what the paper's released test scripts do, which differs by family and between base and tuned models
  (the scripts' facts; all words apart from the question are our own).
- `fair`: one protocol for every model, base, tuned or behind an API.

The course's own headline is a third, `course`: prompt modes of PROMPTS, the question alone for a tuned model and
"yes-no" for the base, read by the parser `fair`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iadr1_lib.answer import DIRECT, QUESTION
from iadr1_lib.errors import UserError

COURSE = "course"
NAMES = ("released", "fair")

# "bare" is the question alone, as the tuned models were asked in training. "yes-no" asks for one of two words. "direct"
# asks for the tags alone, as some of the records of the model photo do (`expert_ad.build.some_answer_only`).
PROMPTS = {"bare": QUESTION, "yes-no": f"{QUESTION} Answer yes or no .", "direct": f"{QUESTION} {DIRECT}"}

_REFERENCE = "The first picture shows a product without defects, for comparison; the second is the one to judge."
_LONG, _MINI = 512, 96  # new tokens; the mini VLM's longest record has about 50


@dataclass(frozen=True)
class Protocol:
    """One way of asking one kind of model.

    Attributes:
        name, family, kind: of NAMES, FAMILIES, and "base" or "tuned" (by PA-SFT or SC-GRPO).
        text: what follows the image, the question included; before it come `system` and `before_image`, if any.
        parser: of PARSERS.
        temperature, top_p: sampling; temperature 0 is greedy.
        max_side: longest side of the image in pixels, a larger one is shrunk; None leaves it to the processor.
        max_new_tokens: length of an answer at most.
    """

    name: str
    family: str
    kind: str
    text: str
    parser: str
    before_image: str = ""
    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    max_side: int | None = None
    max_new_tokens: int = _LONG

    @property
    def prompt(self) -> str:
        """Everything that the model is sent, `<image>` for the picture; the column `prompt` of predictions."""
        return "\n".join(part for part in (self.system, self.before_image, "<image>", self.text) if part)


def prompt_messages(prompt: str | Protocol, images: int = 1) -> list[dict[str, Any]]:
    """The chat messages of a prompt mode or protocol; of two images the first is the reference.

    A protocol says in a sentence before the images which is which.
    """
    pictures = [{"type": "image"}] * images
    if isinstance(prompt, Protocol):
        before = [_text(words) for words in (prompt.before_image, _REFERENCE if images > 1 else "") if words]
        system = [{"role": "system", "content": [_text(prompt.system)]}] if prompt.system else []
        return [*system, {"role": "user", "content": [*before, *pictures, _text(prompt.text)]}]
    if prompt not in PROMPTS:
        raise UserError(f"unknown prompt mode {prompt!r}: choose one of {', '.join(PROMPTS)}")
    return [{"role": "user", "content": [*pictures, _text(PROMPTS[prompt])]}]


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


_TEST_QUESTION = QUESTION.replace("query image", "test image")
_LEAD_IN = "You are an experienced inspector of products. Your task is to tell whether the picture shows a defect."
_OPEN = f"{_LEAD_IN} {QUESTION}"  # says what the task is, asks for no form of answer
_YES_OR_NO = "Answer with one word, yes or no."
_ASKS_FOR_WORD = f"{_TEST_QUESTION} {_YES_OR_NO}"
_TAGGED, _WORDS, _WORDS_CI = "released-tagged", "released-free-text", "released-free-text-ci"

# The scripts' facts: family and kind -> text, parser, other settings. LLaVA-1.5's base is read lowered and not
# stripped, which differs from the parser named here only for an answer of nothing but white space. The mini VLM is
# asked as OneVision.
_RELEASED: dict[tuple[str, str], tuple[str, str, dict[str, Any]]] = {
    ("qwen", "tuned"): (_TEST_QUESTION, _TAGGED, {"top_p": 0.8}),
    ("qwen", "base"): (_TEST_QUESTION, _WORDS, {"system": _YES_OR_NO, "temperature": 0.7, "top_p": 0.8}),
    ("llava-onevision", "tuned"): (QUESTION, _TAGGED, {}),
    ("llava-onevision", "base"): (_OPEN, _TAGGED, {}),
    ("llava-1.6", "tuned"): (QUESTION, _TAGGED, {}),
    ("llava-1.6", "base"): (_OPEN, _TAGGED, {}),
    ("llava-1.5", "tuned"): (_TEST_QUESTION, _TAGGED, {"before_image": _LEAD_IN}),
    ("llava-1.5", "base"): (_ASKS_FOR_WORD, _WORDS_CI, {}),
    ("internvl", "base"): (f"{_OPEN} {_YES_OR_NO}", _WORDS_CI, {"max_new_tokens": 128}),
    ("mini", "tuned"): (QUESTION, _TAGGED, {"max_new_tokens": _MINI}),
    ("mini", "base"): (_OPEN, _TAGGED, {"max_new_tokens": _MINI}),
}
FAMILIES = tuple(dict.fromkeys(family for family, _ in _RELEASED))  # as the released scripts tell models apart


def protocol(name: str, family: str, kind: str) -> Protocol:
    """The protocol of that name for a kind of model.

    `fair` asks every model the bare question, with the picture at most 512 pixels wide and high, greedily, and reads
    with the parser `fair`. The question can be answered by yes or no as it stands, and what is not so answered counts
    as unparsed and is shown. A request for yes or no would pull tuned models away from the words they were trained on
    (measured on dev, docs/lab_log.md). One prompt for all is the point: no cell of a table is flattered by its wording.

    UserError for an unknown name, family or kind, and for a kind that the released scripts do not have.
    """
    if name not in NAMES or (family, kind) not in _RELEASED:
        raise UserError(
            f"there is no protocol {name} for {kind} models of the family {family}: names are {', '.join(NAMES)}, "
            f"kinds base and tuned (the paper tunes no internvl), families {', '.join(FAMILIES)}"
        )
    if name == "released":
        text, parser, settings = _RELEASED[family, kind]
        return Protocol(name, family, kind, text, parser, **settings)
    length = _MINI if family == "mini" else _LONG
    return Protocol(name, family, kind, QUESTION, "fair", max_side=512, max_new_tokens=length)


_FAMILY_OF_TYPE = {
    "qwen2_vl": "qwen",
    "qwen2_5_vl": "qwen",
    "llava_onevision": "llava-onevision",
    "llava_next": "llava-1.6",
    "llava": "llava-1.5",
    "internvl": "internvl",
}


def family_of(config: Mapping[str, Any]) -> str:
    """The family of FAMILIES that a model folder's config.json tells of; UserError for another architecture.

    The mini VLM is of LLaVA-1.5's class with Qwen's language model in place of Llama.
    """
    kind, language_model = config.get("model_type"), config.get("text_config")
    if kind == "llava" and isinstance(language_model, Mapping) and language_model.get("model_type") == "qwen2":
        return "mini"
    if kind not in _FAMILY_OF_TYPE:
        raise UserError(f"no protocol is known for models of type {kind!r}: known are {', '.join(_FAMILY_OF_TYPE)}")
    return _FAMILY_OF_TYPE[kind]


def usual_length(config: Mapping[str, Any]) -> int:
    """Most tokens of an answer of a model that no stage of ours trained."""
    return _MINI if config.get("model_type") == "llava" and family_of(config) == "mini" else _LONG
