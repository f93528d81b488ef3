"""Asking a model: prompts and protocols, batched generation, P(Yes), raw text kept as JSON Lines, resume."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from iadr1_lib.answer import GRID
from iadr1_lib.data import labelled, open_image, to_rgb
from iadr1_lib.evaluation.one_shot import require_references
from iadr1_lib.evaluation.prediction_file import finished_images, prediction_row
from iadr1_lib.evaluation.protocols import COURSE, Protocol, prompt_messages, usual_length
from iadr1_lib.models import load_model, model_config, require_weights
from iadr1_lib.records import Sample
from iadr1_lib.training import stage_note

AHEAD, DECODERS = 2, 2  # batches whose pictures are decoded ahead, and threads that do it
ANSWER_ONLY = ", answer only"  # added to the protocol's name: such rows are not to be compared with generated ones


MORE_THAN_TRAINED = 1.25  # an answer may be somewhat longer than the longest of training; one that is endless is cut


class Said(NamedTuple):
    """What a model said: the raw text, P(Yes) where it can be had, and whether the limit of length ended it."""

    raw: str
    p_yes: float | None
    cut: bool = False


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


def _inputs(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Sequence[Image.Image]],
    prompt: str | Protocol,
    begun: str = "",
) -> Any:
    """What the model reads for one batch; `begun` is the beginning of its answer, written for it."""
    messages = (prompt_messages(prompt, len(group)) for group in images)
    texts = [processor.apply_chat_template(said, add_generation_prompt=True) + begun for said in messages]
    return processor(images=[list(g) for g in images], text=texts, padding=True, return_tensors="pt").to(model.device)


def longest_answer(model_dir: Path | str, asked: str | Protocol = "bare") -> int:
    """Most new tokens that a model is given where nobody says: its family's usual length, or what its training needs.

    The latter is `answer_tokens` of the stage.json beside the folder, and a quarter more. The lengths of the released
    scripts are facts and stay as they are; they have none for the mini VLM.
    """
    if isinstance(asked, Protocol) and asked.name == "released" and asked.family != "mini":
        return asked.max_new_tokens
    trained = stage_note(model_dir).get("answer_tokens", 0)
    return max(usual_length(model_config(model_dir)), math.ceil(MORE_THAN_TRAINED * trained))


def grid_of(model_dir: Path | str) -> int:
    """Rows and columns of the grid of places that a model was trained with."""
    grid: int = stage_note(model_dir).get("grid", GRID)
    return grid


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Sequence[Image.Image]],
    *,
    prompt: str | Protocol = "bare",
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float | None = None,
) -> list[Said]:
    """Raw text and P(Yes) for one batch, and which texts the limit cut; `images` holds one or two pictures each.

    Temperature 0 is greedy; above it, one sample per picture (seed torch first), with `top_p` the model's own if None.
    """
    inputs = _inputs(model, processor, images, prompt)
    sampling: dict[str, Any] = {"do_sample": bool(temperature)}
    if temperature:
        sampling |= {"temperature": temperature} | ({} if top_p is None else {"top_p": top_p})
    out = model.generate(
        **inputs, **sampling, max_new_tokens=max_new_tokens, return_dict_in_generate=True, output_logits=True
    )
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    logits = torch.stack(out.logits, dim=1)
    yes, no = _yes_no_ids(processor)
    tag = processor.tokenizer.convert_tokens_to_ids("<answer>")
    tag = None if tag == processor.tokenizer.unk_token_id else tag
    raw = processor.batch_decode(new, skip_special_tokens=True)
    ends = torch.as_tensor(model.generation_config.eos_token_id or [], device=new.device)
    ended = torch.isin(new, ends).any(dim=1).tolist()
    return [
        Said(text, _p_yes(ids, row, yes, no, tag), not whole)
        for text, ids, row, whole in zip(raw, new, logits, ended, strict=True)
    ]


@torch.inference_mode()
def answer_only(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Sequence[Image.Image]],
    *,
    prompt: str | Protocol = "bare",
) -> list[Said]:
    """Yes or No and P(Yes) for one batch from a single forward pass, without reasoning and without generation.

    A model that is asked for a word is read at its first token: P(Yes) against P(No). A tuned model decides elsewhere:
    in both its patterns reasoning comes first, then `<location>` begins a Yes and `<answer>` ends a No. So an empty
    `<think></think>` is written for it, and P(Yes) is P(`<location>`) against P(`<answer>`). (Its word inside
    `<answer>` would say nothing: without a location before it, the pattern leaves only No.) Either way this is another
    measurement than a generated answer: the tuned model has been kept from thinking.
    """
    forced, yes, no = _choice(processor, _answers_in_tags(prompt))
    inputs = _inputs(model, processor, images, prompt, forced)
    chances = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float().log_softmax(-1)
    odds = chances[:, yes].logsumexp(-1) - chances[:, no].logsumexp(-1)
    return [Said("Yes" if p > 0.5 else "No", float(p)) for p in odds.sigmoid()]


def _answers_in_tags(prompt: str | Protocol) -> bool:
    return prompt.kind == "tuned" if isinstance(prompt, Protocol) else prompt == "bare"


def _choice(processor: ProcessorMixin, tagged: bool) -> tuple[str, list[int], list[int]]:
    """Text to be written for the model, and the token ids that then begin a Yes and a No.

    Where a tokenizer splits the tags, what both have in common ("<") is written, too.
    """
    if not tagged:
        return "", *_yes_no_ids(processor)
    opening = "<think></think>"
    encode, decode = processor.tokenizer.encode, processor.tokenizer.decode
    yes, no = (encode(opening + tag, add_special_tokens=False) for tag in ("<location>", "<answer>"))
    common = len(os.path.commonprefix([yes, no]))
    return decode(yes[:common]), [yes[common]], [no[common]]


def answerer(model_dir: Path | str, prompt: str = "bare") -> Callable[[Sequence[Image.Image]], list[Said]]:
    """Load a model once, for answers to any number of batches of pictures."""
    model, processor = load_model(model_dir)
    length = longest_answer(model_dir)

    def answer(images: Sequence[Image.Image]) -> list[Said]:
        shown = [[to_rgb(image)] for image in images]
        return generate(model, processor, shown, prompt=prompt, max_new_tokens=length)

    return answer


def answer_images(model_dir: Path | str, images: Sequence[Image.Image], prompt: str = "bare") -> list[str]:
    """Raw answers for pictures of any size and mode."""
    return [said.raw for said in answerer(model_dir, prompt)(images)]


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
    questions = [[to_rgb(image)] for image in images]
    made = generate(model, processor, questions, max_new_tokens=max_completion, temperature=temperature)
    return [said.raw for said in made]


def model_name(model_dir: Path | str) -> str:
    """Folder and the first digits of the weights' hash: a model trained again is another model."""
    digest = hashlib.sha256()
    for file in sorted(Path(model_dir).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return f"{Path(model_dir).parent.name}/{Path(model_dir).name}@{digest.hexdigest()[:8]}"


def _area(path: str) -> int:
    """Pixels by the file's header, which orders batches by the length of their prompts.

    What is no picture comes last, so that all others are answered before open_image says what is wrong.
    """
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height
    except (OSError, ValueError):
        return sys.maxsize


def batches_of(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Batches of pictures of like size, so that little is padded; pictures of one size stay in order."""
    ordered = sorted(samples, key=lambda sample: _area(sample.image))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _decoded(
    batches: Sequence[list[Sample]], max_side: int | None = None, references: Mapping[str, Path] | None = None
) -> Iterator[tuple[list[Sample], list[list[Image.Image]]]]:
    """Each batch with its pictures (a reference first, if given), which threads decode while the model is busy."""
    ahead: deque[tuple[list[Sample], list[list[Future[Image.Image]]]]] = deque()
    pool = ThreadPoolExecutor(DECODERS)

    def next_batch() -> tuple[list[Sample], list[list[Image.Image]]]:
        batch, pictures = ahead.popleft()
        return batch, [[picture.result() for picture in shown] for shown in pictures]

    def shown_of(sample: Sample) -> list[Future[Image.Image]]:
        paths: list[str | Path] = [references[sample.image], sample.image] if references else [sample.image]
        return [pool.submit(_open, path, max_side) for path in paths]

    try:
        for batch in batches:
            ahead.append((batch, [shown_of(sample) for sample in batch]))
            if len(ahead) > AHEAD:
                yield next_batch()
        while ahead:
            yield next_batch()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _open(path: str | Path, max_side: int | None) -> Image.Image:
    picture = open_image(path)
    if max_side is not None:
        picture.thumbnail((max_side, max_side))
    return picture


def predict(
    model_dir: Path | str,
    samples: Sequence[Sample],
    out: Path,
    *,
    prompt: str = "bare",
    protocol: str | Protocol = COURSE,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    seed: int = 0,
    answer_only: bool = False,
    quiet: bool = False,
    references: Mapping[str, Path] | None = None,
) -> Path:
    """Answer every sample and append to `out` (predictions.jsonl); images already there are not asked again.

    A `Protocol` says how to ask, and `prompt` is not looked at; with a name instead, the prompt mode is asked greedily.
    `max_new_tokens` None means `longest_answer`; of answers that it cuts the rows have it as `cut`. A
    model that was trained with another grid of places is asked and judged by that grid: then the rows have `grid`. With
    `answer_only` nothing is generated (see `answer_only`).
    With a temperature above 0 each batch has a seed of its own; a run that was stopped inside a batch draws the rest of
    it anew.

    Each row holds image, category, benchmark, label, location, type (the truth), raw (the text), p_yes, prompt (mode,
    or all that was said), protocol (its name), model, seed. Rows come batch by batch, small pictures first. With
    `references` (image -> a normal picture) every question shows two pictures, the reference first, and the row holds
    it as `reference`; UserError if a sample has none.
    """
    if references is not None:
        require_references(samples, references)
    require_weights(model_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = protocol if isinstance(protocol, Protocol) else None
    name = (asked.name if asked else str(protocol)) + (ANSWER_ONLY if answer_only else "")
    origin: dict[str, Any] = {"prompt": asked.prompt if asked else prompt, "protocol": name}
    origin |= {"model": model_name(model_dir), "seed": seed}
    if (grid := grid_of(model_dir)) != GRID:
        origin["grid"] = grid
        samples = [replace(sample, location=_place(sample, grid)) for sample in samples]
    length = max_new_tokens or longest_answer(model_dir, asked or prompt)
    done = finished_images(samples, out, origin, references, length)
    if all(sample.image in done for sample in samples):
        return out
    model, processor = load_model(model_dir)
    ask = asking(asked or prompt, length, seed, answer_only)
    todo = [[s for s in batch if s.image not in done] for batch in batches_of(samples, batch_size)]
    start, answered, count = time.time(), 0, sum(map(len, todo))
    with out.open("a") as file:
        decoded = _decoded([batch for batch in todo if batch], asked.max_side if asked else None, references)
        for number, (batch, images) in enumerate(decoded):
            for sample, said in zip(batch, ask(model, processor, images), strict=True):
                row = prediction_row(sample, said.raw, said.p_yes, origin, cut=length if said.cut else False)
                if references:
                    row["reference"] = str(references[sample.image])
                file.write(json.dumps(row) + "\n")
            file.flush()
            answered += len(batch)
            if not quiet and (number % 5 == 4 or answered == count):
                rate = answered / (time.time() - start)
                print(f"answered {answered + len(done)} of {len(samples)} images, {rate:.0f} a second", flush=True)
    return out


def _place(sample: Sample, grid: int) -> str | None:
    """The cell of a defect in a grid of its own; None where no mask says where it is."""
    return labelled(sample, grid).location if sample.mask and sample.location else None


def asking(prompt: str | Protocol, max_new_tokens: int, seed: int, only: bool) -> Callable[..., list[Said]]:
    """A function (model, processor, images) -> what is said to each."""
    if only:
        return partial(answer_only, prompt=prompt)
    told = prompt if isinstance(prompt, Protocol) else None
    temperature = (told.temperature if told else None) or 0.0
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": told.top_p if told else None,
    }

    def ask(model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[Sequence[Image.Image]]) -> list[Said]:
        if temperature:
            pixels = hashlib.sha256(b"".join(image.tobytes() for group in images for image in group))
            torch.manual_seed(seed + int.from_bytes(pixels.digest()[:4]))
        return generate(model, processor, images, prompt=prompt, **options)

    return ask
