"""Asking a model: prompts per mode, batched generation, P(Yes), raw text kept as JSON Lines, resume."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from iadr1_lib.answer import QUESTION
from iadr1_lib.benchmarks import Sample, open_image
from iadr1_lib.models import load_model
from iadr1_lib.prediction_file import finished_images, prediction_row
from iadr1_lib.references import require_references
from iadr1_lib.runs import UserError

# "bare" is the question alone, as the tuned models were asked in training. "yes-no" asks a model that knows no tags
# for one of two words; the fair way to ask a base model.
PROMPTS = {"bare": QUESTION, "yes-no": f"{QUESTION} Answer yes or no ."}


def prompt_messages(prompt: str, images: int = 1) -> list[dict[str, Any]]:
    """The chat message of a prompt mode; with two images the first is the reference, the second the query."""
    if prompt not in PROMPTS:
        raise UserError(f"unknown prompt mode {prompt!r}: choose one of {', '.join(PROMPTS)}")
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(images)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": PROMPTS[prompt]}]}]


def _yes_no_ids(processor: ProcessorMixin) -> tuple[list[int], list[int]]:
    """First token ids of "Yes"/"yes" and of "No"/"no"."""
    encode = processor.tokenizer.encode
    pair = [[encode(w, add_special_tokens=False)[0] for w in words] for words in (("Yes", "yes"), ("No", "no"))]
    return pair[0], pair[1]


def _p_yes(ids: torch.Tensor, logits: torch.Tensor, yes: list[int], no: list[int], tag: int | None) -> float | None:
    """P(Yes) / (P(Yes) + P(No)) where the answer's word is chosen; None if the output never gets there.

    Args:
        ids: generated tokens, (length,).
        logits: what they were chosen from, (length, vocabulary).
        tag: id of `<answer>`; if it is in the output, the word after its last occurrence counts, else the first word.
    """
    tagged = (ids == tag).nonzero().flatten() if tag is not None else ids.new_empty(0)
    if len(tagged):
        place = int(tagged[-1]) + 1
    else:
        words = torch.isin(ids, torch.tensor(yes + no, device=ids.device)).nonzero().flatten()
        place = int(words[0]) if len(words) else len(ids)
    if place >= len(ids):
        return None
    chances = logits[place].float().softmax(-1)
    said_yes, said_no = float(chances[yes].sum()), float(chances[no].sum())
    return said_yes / (said_yes + said_no) if said_yes + said_no > 0 else None


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Sequence[Image.Image]],
    *,
    prompt: str = "bare",
    max_new_tokens: int = 96,
    temperature: float = 0.0,
) -> list[tuple[str, float | None]]:
    """Raw text and P(Yes) for one batch; `images` holds one or two pictures per question.

    Temperature 0 is greedy; above it, one sample per picture (seed torch first).
    """
    texts = [
        processor.apply_chat_template(prompt_messages(prompt, len(group)), add_generation_prompt=True)
        for group in images
    ]
    inputs = processor(images=[list(g) for g in images], text=texts, padding=True, return_tensors="pt").to(model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    out = model.generate(
        **inputs, **sampling, max_new_tokens=max_new_tokens, return_dict_in_generate=True, output_logits=True
    )
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    logits = torch.stack(out.logits, dim=1)
    yes, no = _yes_no_ids(processor)
    tag = processor.tokenizer.convert_tokens_to_ids("<answer>")
    tag = None if tag == processor.tokenizer.unk_token_id else tag
    raw = processor.batch_decode(new, skip_special_tokens=True)
    return [(text, _p_yes(ids, row, yes, no, tag)) for text, ids, row in zip(raw, new, logits, strict=True)]


def answer_images(model_dir: Path | str, images: Sequence[Image.Image], prompt: str = "bare") -> list[str]:
    """Raw answers for pictures of any size and mode."""
    model, processor = load_model(model_dir)
    return [text for text, _ in generate(model, processor, [[image.convert("RGB")] for image in images], prompt=prompt)]


def sample_answers(
    model_dir: Path | str,
    images: Sequence[Image.Image],
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    max_completion: int,
    seed: int,
) -> list[str]:
    """One sampled raw answer per picture, drawn as SC-GRPO draws its completions."""
    model, processor = load_model(model_dir)
    model.generation_config.update(do_sample=True, top_p=top_p, top_k=top_k)
    torch.manual_seed(seed)
    questions = [[image] for image in images]
    made = generate(model, processor, questions, max_new_tokens=max_completion, temperature=temperature)
    return [text for text, _ in made]


def model_name(model_dir: Path | str) -> str:
    """Folder and the first digits of the weights' hash: a model trained again is another model."""
    digest = hashlib.sha256()
    for file in sorted(Path(model_dir).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return f"{Path(model_dir).parent.name}/{Path(model_dir).name}@{digest.hexdigest()[:8]}"


def _batches(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def predict(
    model_dir: Path | str,
    samples: Sequence[Sample],
    out: Path,
    *,
    prompt: str = "bare",
    protocol: str = "fair",
    batch_size: int = 64,
    max_new_tokens: int = 96,
    seed: int = 0,
    quiet: bool = False,
    references: Mapping[str, Path] | None = None,
) -> Path:
    """Answer every sample greedily and append to `out` (predictions.jsonl); images already there are not asked again.

    Each row holds image, category, benchmark, label, location, type (the truth), raw (the text), p_yes, prompt,
    protocol, model, seed. With `references` (image -> a normal picture) every question shows two pictures, the
    reference first, and the row holds it as `reference`; UserError if a sample has none.
    """
    if references is not None:
        require_references(samples, references)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not any(Path(model_dir).glob("*.safetensors")):
        load_model(model_dir)  # says what is missing
    name = model_name(model_dir)
    done = finished_images(out, seed, prompt, name, references or {})
    todo = [s for s in samples if s.image not in done]
    if not todo:
        return out
    model, processor = load_model(model_dir)
    start, answered = time.time(), 0
    with out.open("a") as file:
        for number, batch in enumerate(_batches(todo, batch_size)):
            before = [[open_image(references[s.image])] if references else [] for s in batch]
            images = [[*shown, open_image(s.image)] for shown, s in zip(before, batch, strict=True)]
            for sample, (raw, p_yes) in zip(
                batch,
                generate(model, processor, images, prompt=prompt, max_new_tokens=max_new_tokens),
                strict=True,
            ):
                row = prediction_row(sample, raw, p_yes, prompt=prompt, protocol=protocol, model=name, seed=seed)
                if references:
                    row["reference"] = str(references[sample.image])
                file.write(json.dumps(row) + "\n")
            file.flush()
            answered += len(batch)
            if not quiet and (number % 5 == 4 or answered == len(todo)):
                rate = answered / (time.time() - start)
                print(
                    f"answered {answered + len(done)} of {len(samples)} images, {rate:.0f} a second",
                    flush=True,
                )
    return out
