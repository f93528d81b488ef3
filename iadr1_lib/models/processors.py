"""Loading the processor of a saved model, with the same pixels on every machine.

Two quirks of the libraries are handled here: with torchvision installed transformers would choose image processors
whose pixels differ, and without it a processor that can also read videos (LLaVA-OneVision, Qwen) cannot be loaded.
torchvision is not required: the package registry has it for the CUDA build of torch only, and that build cannot be
imported beside the CPU build of torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor, AutoTokenizer, AutoVideoProcessor, BaseVideoProcessor, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # the one at the top needs torchvision
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import PushToHubMixin, is_torchvision_available

from iadr1_lib.errors import UserError, one_line
from iadr1_lib.files import read_json
from iadr1_lib.models.families import model_config


class KeptVideoSettings(BaseVideoProcessor, PushToHubMixin):  # in this order both with torchvision and without
    """Takes the place of a processor's video part, which needs torchvision: reads no video, keeps the settings.

    So a model that is trained without torchvision is saved with the video settings that it came with.
    """

    _auto_class = None
    model_input_names: list[str] = []

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)


def load_processor(folder: Path | str) -> ProcessorMixin:
    """The processor of a saved model, with Pillow pixels whether torchvision is installed or not.

    Prompts are padded left, so that the answers of a batch begin together; some published tokenizers pad right.

    Raises:
        UserError: there is no model in the folder, or a file of the processor is damaged.
    """
    folder = Path(folder)
    kind: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(model_config(folder)["model_type"], ""), None)
    try:
        if kind is None or "video_processor" not in kind.get_attributes():
            processor = AutoProcessor.from_pretrained(str(folder), backend="pil")
        else:  # part by part: AutoProcessor would hand the word "pil" to the video processor, which cannot take it
            settings, _ = kind.get_processor_dict(str(folder))
            image_processor = AutoImageProcessor.from_pretrained(str(folder), backend="pil")
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
            if is_torchvision_available():
                video = AutoVideoProcessor.from_pretrained(str(folder))
            else:
                kept = settings.get("video_processor") or read_json(folder / "video_preprocessor_config.json", {})
                video = KeptVideoSettings(kept)
            processor = kind.from_args_and_dict([image_processor, tokenizer, video], settings)
            processor.chat_template = processor.chat_template or tokenizer.chat_template
        processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "word"}]}])
    except Exception as error:  # a damaged file breaks transformers in ways of every kind
        message = f"the processor in {folder} cannot be loaded ({one_line(error)}): copy the base model's"
        raise UserError(message) from error
    processor.tokenizer.padding_side = "left"
    return processor
