"""Loading the processor of a saved model, with the same pixels on every machine.

Two quirks of the libraries are met here and nowhere else: with torchvision installed transformers would choose image
processors whose pixels differ, and without it a processor that can also read videos cannot be loaded at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor, AutoTokenizer, AutoVideoProcessor, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # the one at the top needs torchvision
from transformers.utils import PushToHubMixin, is_torchvision_available

from iadr1_lib.errors import UserError

_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class KeptVideoSettings(PushToHubMixin):
    """Stands where a processor holds its video part, which needs torchvision: reads no video, keeps the settings.

    So a model that is trained without torchvision is saved with the video settings that it came with.
    """

    _auto_class = None
    model_input_names: list[str] = []

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def _set_processor_class(self, name: str) -> None:
        self.settings["processor_class"] = name

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)


def with_kept_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class, ready to take a KeptVideoSettings; under its own name, which it writes when it is saved."""

    def check(self: Any, name: str, argument: Any) -> Any:
        if isinstance(argument, KeptVideoSettings):
            return KeptVideoSettings
        return processor_class.check_argument_for_proper_class(self, name, argument)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        processor_class.__init__(self, *args, **kwargs)

    # The signature tells transformers which parts the processor has.
    init.__wrapped__ = processor_class.__init__  # type: ignore[attr-defined]
    members = {"__init__": init, "check_argument_for_proper_class": check, "__module__": processor_class.__module__}
    return type(processor_class.__name__, (processor_class,), members)


def load_processor(folder: Path | str) -> ProcessorMixin:
    """The processor of a saved model, with Pillow pixels whether torchvision is installed or not."""
    folder = Path(folder)
    settings = _settings(folder)
    processor_class: Any = getattr(transformers, settings.get("processor_class", ""), None)
    has_video = processor_class is not None and "video_processor" in processor_class.get_attributes()
    if not has_video:
        return _padded_left(AutoProcessor.from_pretrained(str(folder), backend="pil"))
    # Part by part: AutoProcessor would hand the word "pil" to the video processor too, which cannot take it.
    video: Any
    if is_torchvision_available():
        video, made = AutoVideoProcessor.from_pretrained(str(folder)), processor_class
    else:
        kept = settings.get("video_processor") or _read(folder / "video_preprocessor_config.json")
        video, made = KeptVideoSettings(kept), with_kept_video(processor_class)
    parts = [
        AutoImageProcessor.from_pretrained(str(folder), backend="pil"),
        AutoTokenizer.from_pretrained(str(folder)),
        video,
    ]
    values = {key: settings[key] for key in _own_values(processor_class) if key in settings}
    values["chat_template"] = settings.get("chat_template") or _chat_template(folder) or parts[1].chat_template
    return _padded_left(made(*parts, **values))


def _padded_left(processor: ProcessorMixin) -> ProcessorMixin:
    """Prompts of a batch end together, so that answers begin together; some published tokenizers pad right."""
    processor.tokenizer.padding_side = "left"
    return processor


def _own_values(processor_class: type[ProcessorMixin]) -> list[str]:
    code = processor_class.__init__.__code__
    return [n for n in code.co_varnames[1 : code.co_argcount] if n not in processor_class.get_attributes()]


def _settings(folder: Path) -> dict[str, Any]:
    """What the folder's files say about its processor; the first file that has a value wins."""
    settings: dict[str, Any] = {}
    for name in reversed(_FILES):
        settings |= _read(folder / name)
    return settings


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON ({error}): copy or fetch the model folder again") from error
    return content


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template: str | None = _read(folder / "chat_template.json").get("chat_template")
    return template
