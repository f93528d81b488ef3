"""Asking a model: batched generation, P(Yes), and a file of predictions that a stopped run continues."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from iadr1_lib.answer import GRID
from iadr1_lib.data import labelled, open_image, to_rgb
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation.one_shot import require_references
from iadr1_lib.evaluation.prediction_file import finished_images, prediction_row
from iadr1_lib.evaluation.protocols import COURSE, Protocol, prompt_messages, usual_length
from iadr1_lib.files import Journal
from iadr1_lib.models import ComparisonConfig, load_model, model_config, nearest_first, require_weights, with_references
from iadr1_lib.records import Sample
from iadr1_lib.training import stage_note

Questions = Sequence[Sequence[Image.Image]]  # the pictures of each question, one or two

AHEAD, DECODERS = 2, 2  # batches whose pictures are decoded ahead, and threads that do it
ANSWER_ONLY = ", answer only"  # added to the protocol's name: such rows are not to be compared with generated ones
MORE_THAN_TRAINED = 1.25  # an answer may be somewhat longer than the longest of training; one that is endless is cut


class Generated(NamedTuple):
    """One answer: the raw text, P(Yes) where it can be had, and whether the limit of length ended the text."""

    raw: str
    p_yes: float | None
    cut: bool = False


def longest_answer(model_dir: Path | str, prompt: str | Protocol = "bare") -> int:
    """Most new tokens that a model is given by default: its family's usual length, or what its training needs, which
    is `answer_tokens` of the stage.json beside the folder, and a quarter more. The lengths of the released scripts are
    facts and stay as they are; they have none for the mini VLM."""
    if isinstance(prompt, Protocol) and prompt.name == "released" and prompt.family != "mini":
        return prompt.max_new_tokens
    trained = stage_note(model_dir).get("answer_tokens", 0)
    return max(usual_length(model_config(model_dir)), math.ceil(MORE_THAN_TRAINED * trained))


def grid_of(model_dir: Path | str) -> int:
    """Rows and columns of the grid of places that a model was trained with."""
    return int(stage_note(model_dir).get("grid", GRID))


def _inputs(
    model: PreTrainedModel, processor: ProcessorMixin, images: Questions, prompt: str | Protocol, prefix: str = ""
) -> Any:
    """What the model reads for one batch; `prefix` is the beginning of its answer, written for it."""
    chats = (prompt_messages(prompt, len(group)) for group in images)
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) + prefix for chat in chats]
    return processor(images=[list(g) for g in images], text=texts, padding=True, return_tensors="pt").to(model.device)


def _yes_no_ids(processor: ProcessorMixin) -> tuple[list[int], list[int]]:
    """First token ids of "Yes"/"yes" and of "No"/"no"."""
    encode = processor.tokenizer.encode
    yes, no = ([encode(w, add_special_tokens=False)[0] for w in words] for words in (("Yes", "yes"), ("No", "no")))
    return yes, no


def _p_yes(ids: torch.Tensor, logits: torch.Tensor, yes: list[int], no: list[int], tag: int | None) -> float | None:
    """P(Yes) / (P(Yes) + P(No)) where the answer's word is chosen; None if the output never gets there.

    `ids` (length,) are the generated tokens, `logits` (length, vocabulary) what they were chosen from, `tag` is the id
    of `<answer>`: after its last occurrence stands the word that counts; without it the first yes or no does.
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
    of_yes, of_no = float(chances[yes].sum()), float(chances[no].sum())
    return of_yes / (of_yes + of_no) if of_yes + of_no > 0 else None


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Questions,
    *,
    prompt: str | Protocol = "bare",
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float | None = None,
) -> list[Generated]:
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
        Generated(text, _p_yes(ids, row, yes, no, tag), not whole)
        for text, ids, row, whole in zip(raw, new, logits, ended, strict=True)
    ]


@torch.inference_mode()
def answer_only(
    model: PreTrainedModel, processor: ProcessorMixin, images: Questions, *, prompt: str | Protocol = "bare"
) -> list[Generated]:
    """Yes or No and P(Yes) for one batch from a single forward pass, without reasoning and without generation.

    A model that is asked for a word is read at its first token: P(Yes) against P(No). A tuned model decides after its
    reasoning, where `<location>` begins a Yes and `<answer>` a No: an empty `<think></think>` is written for it, and
    P(Yes) is P(`<location>`) against P(`<answer>`). This is another measurement than a generated answer: the tuned
    model has been kept from thinking.
    """
    tagged = prompt.kind == "tuned" if isinstance(prompt, Protocol) else prompt != "yes-no"
    prefix, yes, no = _choice(processor, tagged)
    inputs = _inputs(model, processor, images, prompt, prefix)
    chances = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float().log_softmax(-1)
    odds = chances[:, yes].logsumexp(-1) - chances[:, no].logsumexp(-1)
    return [Generated("Yes" if p > 0.5 else "No", float(p)) for p in odds.sigmoid()]


def _choice(processor: ProcessorMixin, tagged: bool) -> tuple[str, list[int], list[int]]:
    """Text to be written for the model, and the token ids that then begin a Yes and a No."""
    if not tagged:
        return "", *_yes_no_ids(processor)
    encode, decode = processor.tokenizer.encode, processor.tokenizer.decode
    yes, no = (encode(f"<think></think>{tag}", add_special_tokens=False) for tag in ("<location>", "<answer>"))
    common = len(os.path.commonprefix([yes, no]))  # with the "<" of a tokenizer that splits the tags
    return decode(yes[:common]), [yes[common]], [no[common]]


def ask(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Questions,
    prompt: str | Protocol,
    max_new_tokens: int,
    seed: int = 0,
    only: bool = False,
) -> list[Generated]:
    """Answers to one batch as the prompt mode or protocol asks for them; `only` means `answer_only`."""
    if only:
        return answer_only(model, processor, images, prompt=prompt)
    sampling: dict[str, Any] = {}
    if isinstance(prompt, Protocol) and prompt.temperature:
        sampling = {"temperature": prompt.temperature, "top_p": prompt.top_p}
        # Each batch has a seed of its own, whatever was asked before it.
        pixels = hashlib.sha256(b"".join(image.tobytes() for group in images for image in group))
        torch.manual_seed(seed + int.from_bytes(pixels.digest()[:4]))
    return generate(model, processor, images, prompt=prompt, max_new_tokens=max_new_tokens, **sampling)


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
    """One sampled raw answer per picture, sampled as SC-GRPO samples its completions."""
    model, processor = load_model(model_dir)
    model.generation_config.update(do_sample=True, top_p=top_p, top_k=top_k)
    torch.manual_seed(seed)
    questions = [[to_rgb(image)] for image in images]
    answers = generate(model, processor, questions, max_new_tokens=max_completion, temperature=temperature)
    return [answer.raw for answer in answers]


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
    references: Mapping[str, Sequence[Path]] | None = None,
) -> Path:
    """Answer every sample and append to `out` (predictions.jsonl); images already there are not asked again.

    Rows are those of `prediction_row`, small pictures first. A model that was trained with another grid of places is
    judged by that grid: then the rows have `grid`.

    Args:
        prompt: mode of PROMPTS, asked greedily; not looked at where `protocol` is a `Protocol`.
        protocol: how to ask, or only a name for the rows. Where its temperature is above 0, a run that was stopped
            inside a batch samples the rest of it anew.
        max_new_tokens: None means `longest_answer`; of answers that it cuts the rows have it as `cut`.
        answer_only: generate nothing (see `answer_only`).
        references: image -> normal pictures; one (see `compared_with`) is then shown before the image. The first is
            the row's `reference`.

    Raises:
        UserError: there is no model, a picture cannot be read, or a sample has no reference, or several where the
            model is shown one.
    """
    if references is not None:
        require_references(samples, references)
        if max(map(len, references.values()), default=0) > 1 and not compares_with_several(model_dir):
            raise UserError(
                f"{model_dir} can be shown one reference, not several: give one to each picture (--shots 1)"
            )
    require_weights(model_dir)
    asked = protocol if isinstance(protocol, Protocol) else None
    question = asked or prompt
    origin: dict[str, Any] = {"prompt": asked.prompt if asked else prompt}
    origin["protocol"] = (asked.name if asked else str(protocol)) + (ANSWER_ONLY if answer_only else "")
    origin |= {"model": model_name(model_dir), "seed": seed}
    if (grid := grid_of(model_dir)) != GRID:
        origin["grid"] = grid
        places = [labelled(s, grid).location if s.mask and s.location else None for s in samples]
        samples = [replace(sample, location=place) for sample, place in zip(samples, places, strict=True)]
    length = max_new_tokens or longest_answer(model_dir, question)
    done = finished_images(samples, out, origin, references, length)
    # Batches of all samples, so that a run that goes on samples as one that was not stopped.
    todo = [[s for s in batch if s.image not in done] for batch in batches_of(samples, batch_size)]
    if not (count := sum(map(len, todo))):
        return out
    model, processor = load_model(model_dir)

    def pictures(sample: Sample) -> list[Image.Image]:
        before = [open_image(path) for path in references[sample.image]] if references else []
        shown = compared_with(open_image(sample.image), before)
        if asked and asked.max_side:
            for picture in shown:
                picture.thumbnail((asked.max_side, asked.max_side))
        return shown

    journal, start, answered = Journal(out, ascii_only=True), time.time(), 0
    for number, (batch, images) in enumerate(_decoded([batch for batch in todo if batch], pictures)):
        answers = ask(model, processor, images, question, length, seed, answer_only)
        for sample, answer in zip(batch, answers, strict=True):
            row = prediction_row(sample, answer.raw, answer.p_yes, origin, cut=answer.cut and length)
            journal.append(row | ({"reference": str(references[sample.image][0])} if references else {}))
        answered += len(batch)
        if not quiet and (number % 5 == 4 or answered == count):
            rate = answered / (time.time() - start)
            print(f"answered {answered + len(done)} of {len(samples)} images, {rate:.0f} a second", flush=True)
    return out


def compared_with(picture: Image.Image, references: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures of one question: of several references the nearest is shown, the others are only compared with."""
    if len(references) < 2:
        return [*references, picture]
    shown, *others = nearest_first(picture, references)
    return [shown, with_references(picture, others)]


def compares_with_several(model_dir: Path | str) -> bool:
    """Whether a model can compare a picture with more references than it is shown (`models.comparison`)."""
    vision = model_config(model_dir).get("vision_config")
    return isinstance(vision, dict) and vision.get("model_type") == ComparisonConfig.model_type


def answer_only_prompt(model_dir: Path | str, prompt: str) -> str:
    """How a model is asked for an answer without reasoning: by its own words where it was trained with such."""
    return "direct" if prompt == "bare" and compares_with_several(model_dir) else prompt


def model_name(model_dir: Path | str) -> str:
    """Folder and the first digits of the weights' hash: a model trained again is another model."""
    digest = hashlib.sha256()
    for path in sorted(Path(model_dir).glob("*.safetensors")):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)  # goes on with what came before
    return f"{Path(model_dir).parent.name}/{Path(model_dir).name}@{digest.hexdigest()[:8]}"


def batches_of(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Batches of pictures of like size, so that little is padded; pictures of one size stay in order."""
    ordered = sorted(samples, key=lambda sample: _area(sample.image))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _area(path: str) -> int:
    """Pixels by the file's header; what is no picture comes last, so that all others are answered before the error."""
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height
    except (OSError, ValueError):
        return sys.maxsize


def _decoded(
    batches: Sequence[list[Sample]], pictures: Callable[[Sample], list[Image.Image]]
) -> Iterator[tuple[list[Sample], list[list[Image.Image]]]]:
    """Each batch with its pictures; threads decode those of the next ones while the model is busy."""
    with ThreadPoolExecutor(DECODERS) as pool:
        decoding = [pool.map(pictures, batch) for batch in batches[:AHEAD]]
        for number, batch in enumerate(batches):
            decoding += [pool.map(pictures, later) for later in batches[number + AHEAD : number + AHEAD + 1]]
            yield batch, list(decoding.pop(0))


def measure_speed(
    model_dir: Path | str,
    samples: Sequence[Sample],
    *,
    prompt: str | Protocol = "bare",
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    answer_only: bool = False,
) -> tuple[dict[str, float], int]:
    """Answer `samples` once and write nothing: seconds of decode (pictures from files, one after another) and answer
    (the model), and the number of tokens written. The first batch is asked once before the clock starts."""
    model, processor = load_model(model_dir)
    length = max_new_tokens or longest_answer(model_dir, prompt)
    seconds, tokens, batches = {"decode": 0.0, "answer": 0.0}, 0, batches_of(samples, batch_size)
    for number, batch in enumerate([batches[0], *batches]):
        start = time.perf_counter()
        images = [[open_image(sample.image)] for sample in batch]
        decoded = time.perf_counter()
        answers = ask(model, processor, images, prompt, length, only=answer_only)  # texts: a GPU has finished
        if number:
            seconds["decode"] += decoded - start
            seconds["answer"] += time.perf_counter() - decoded
            tokens += sum(len(processor.tokenizer.encode(one.raw, add_special_tokens=False)) for one in answers)
    return seconds, tokens
