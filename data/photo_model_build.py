"""Make the base weights of the model `photo`, data/photo_model/base: generic seeing and talk, nothing of inspection.

    python data/photo_model_build.py --textures FOLDER [--out FOLDER] [--seed 0]      # under an hour on two cores
    iadr1 run --profile photo --only 02,03,04,07                                      # the stages, from this base
    python data/photo_model_build.py --stages runs/photo-s0                           # keeps them beside the base

As for the mini VLM (mini_base_build.py) there are two lessons. *Seeing*: which mark lies at each cell of the picture,
with a clean picture of the same thing to compare with, and without. *Talking*: materials, marks, their places, and
what differs between two pictures. The pictures are `iadr1_lib.world.photographs`, CC0 textures with marks painted on
them, each made for one lesson and used in it a few times, turned and mirrored. The inspection question, the tags and
the words for defects never occur.
"""

from __future__ import annotations

import argparse
import random
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from mini_base_build import YES_NO, Log, Optimiser, answer_loss, note, packed, save_base, save_half
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from iadr1_lib.answer import CELLS, DEFECT_TYPES, QUESTION, cell_of_mask
from iadr1_lib.expert_ad import teacher_vocabulary
from iadr1_lib.files import read_object, write_json
from iadr1_lib.models import build_photo, build_photo_processor, build_tokenizer, load_model
from iadr1_lib.models.comparison import CELLS as GRID
from iadr1_lib.models.comparison import MAPS, SMALL, TOKENS, ComparisonTower, principal_directions
from iadr1_lib.world.photographs import Kind, kinds, shoot

# Names for marks that do not say that they are defects, one for each type.
MARKS = dict(zip(DEFECT_TYPES, ("stain", "piece", "line", "gap", "bulge", "pit", "crack", "rub"), strict=True))
FIRST_KIND = 100_000  # kinds of the base alone
PICTURES_PER_KIND = 4


@dataclass(frozen=True)
class PhotoSettings:
    """Sizes of the two lessons; the tests make them small."""

    scenes: int = 8000
    seeing_epochs: int = 2
    talking_steps: int = 900
    batch: int = 32
    questions: int = 8
    seeing_rate: float = 1e-3
    talking_rate: float = 1e-2
    adam_rate: float = 1.5e-3
    directions: int = 16
    vocabulary: int = 1024


@dataclass(frozen=True)
class Scene:
    """A picture with a mark or without, and a clean one of the same thing, as the tower has measured them.

    Attributes:
        maps: (3, cells, maps) of the clean picture alone, of the picture alone, and of the picture compared.
        labels: (GRID, GRID), 0 or 1 + the mark's place in MARKS.
    """

    maps: torch.Tensor
    labels: torch.Tensor
    material: str
    thing: str
    mark: str | None
    cell: str | None


# ---------------------------------------------------------------------------------------------- scenes


def _pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _scenes_of(job: tuple[Kind, int, dict[str, torch.Tensor]]) -> list[Scene]:
    """The scenes of one kind, in a process of its own."""
    kind, seed, buffers = job
    torch.set_num_threads(1)
    tower = _measuring_tower(buffers)
    rng = np.random.default_rng([kind.seed, seed])
    scenes = []
    for number in range(0, PICTURES_PER_KIND, 2):
        clean = _pixels(shoot(kind, zlib.crc32(f"base/{seed}/{number}/clean".encode())).image)
        for turn in range(2):
            name = str(rng.choice(DEFECT_TYPES)) if turn else None
            photograph = shoot(kind, zlib.crc32(f"base/{seed}/{number}/{turn}".encode()), name)
            picture, nothing = _pixels(photograph.image), torch.zeros_like(clean)
            rows = (clean, nothing), (picture, nothing), (picture, clean)
            maps = torch.stack([tower.maps(torch.stack(row)) for row in rows]).half()
            mask = torch.from_numpy(photograph.mask[None, None].astype(np.float32))
            covered = nn.functional.adaptive_max_pool2d(mask, GRID)[0, 0] > 0
            labels = covered.long() * (1 + list(MARKS).index(name) if name else 0)
            cell = cell_of_mask(photograph.mask) if name else None
            scenes.append(Scene(maps, labels, kind.material, kind.thing, MARKS[name] if name else None, cell))
    return scenes


def _measuring_tower(buffers: dict[str, torch.Tensor]) -> ComparisonTower:
    model = build_photo_tower(len(buffers["directions"]))
    model.load_state_dict(buffers, strict=False)
    return model


def build_photo_tower(directions: int) -> ComparisonTower:
    """A tower with random weights that keeps what it measured of few pictures only."""
    from iadr1_lib.models import ComparisonConfig

    tower = ComparisonTower(ComparisonConfig(directions=directions))
    tower.KEPT = 4
    return tower


def make_scenes(textures: Path, settings: PhotoSettings, seed: int, buffers: dict[str, torch.Tensor]) -> list[Scene]:
    """`settings.scenes` scenes, every second one with a mark, made in two processes."""
    products = kinds(textures, "pa_sft", settings.scenes // PICTURES_PER_KIND, FIRST_KIND)
    jobs = [(kind, seed, buffers) for kind in products]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        return [scene for scenes in pool.map(_scenes_of, jobs, chunksize=8) for scene in scenes]


# ---------------------------------------------------------------------------------------------- talk


def talk(scene: Scene, compared: bool, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """`count` questions with answers, half of them to be answered yes or no."""
    return [
        _yes_no_question(scene, compared, rng) if i % 2 else rng.choice(_wh_questions(scene, compared))
        for i in range(count)
    ]


def _wh_questions(scene: Scene, compared: bool) -> list[tuple[str, str]]:
    what = f"a {scene.mark} at the {scene.cell}" if scene.mark else "nothing"
    thing = f"a {scene.thing} of {scene.material}"
    pairs = [
        ("What material is this ?", scene.material),
        ("What is this ?", thing),
        ("Describe the image .", f"{thing} with {what if scene.mark else 'no mark'} ."),
        ("What mark is there ?", scene.mark or "none"),
        ("Where is a mark ?", scene.cell or "nowhere"),
    ]
    if scene.mark:
        pairs += [("Where is the mark ?", scene.cell or ""), ("What is the mark ?", scene.mark)] * 2
        pairs += [(f"What is at the {scene.cell} ?", scene.mark), (f"Where is the {scene.mark} ?", scene.cell or "")]
    if compared:
        pairs += [("What is different ?", what), ("Where do the pictures differ ?", scene.cell or "nowhere")] * 3
    return pairs


def _yes_no_question(scene: Scene, compared: bool, rng: random.Random) -> tuple[str, str]:
    """A question whose answer is yes as often as no, for what is asked of the picture as a whole."""
    marks = [mark for mark in MARKS.values() if mark != scene.mark]
    kind = rng.choice(("any", "any", "mark", "place") if scene.mark else ("any", "any", "mark"))
    truth = rng.random() < 0.5
    if kind == "any":
        words = ("Do the pictures differ ?", "Is anything different ?") if compared else ("Is there a mark ?",)
        question, truth = rng.choice(("Is there any mark ?", *words)), scene.mark is not None
    elif kind == "mark":
        truth = truth and scene.mark is not None
        question = f"Is there a {scene.mark if truth else rng.choice(marks)} ?"
    else:
        cell = scene.cell if truth else rng.choice([c for c in CELLS if c != scene.cell])
        question = f"Is the mark at the {cell} ?"
    return question + (YES_NO if rng.random() < 0.6 else ""), "Yes" if truth else "No"


def tokenizer_corpus(textures: Path) -> list[str]:
    """Generic talk, and the sentences the later stages use, so that each of their words is one token."""
    rng = random.Random(0)
    lines: list[str] = []
    nothing = torch.zeros(0)
    for kind in kinds(textures, "pa_sft", 400, FIRST_KIND):
        mark, cell = rng.choice([*MARKS.values()]), rng.choice(CELLS)
        for name, place in ((mark, cell), (None, None)):
            scene = Scene(nothing, nothing, kind.material, kind.thing, name, place)
            lines += [text for compared in (True, False) for pair in talk(scene, compared, 12, rng) for text in pair]
    reasoning = [f"{line} {line}" for line in teacher_vocabulary()]  # within a text a word has a blank in front
    words = [*MARKS.values(), *CELLS, *DEFECT_TYPES, "nowhere", "nothing", "none"]
    return lines + (reasoning + [QUESTION, "Yes No", *words]) * 3


# ---------------------------------------------------------------------------------------------- lessons


def _turned(maps: torch.Tensor, labels: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Quarter turns and a mirror: eight pictures from one. What is measured turns with the picture."""
    turns, planes = rng.randrange(4), maps.unflatten(1, (GRID, GRID))
    planes, labels = torch.rot90(planes, turns, (1, 2)), torch.rot90(labels, turns, (1, 2))
    if rng.random() < 0.5:
        planes, labels = planes.flip(2), labels.flip(2)
    return planes.flatten(1, 2), labels


def learn_to_see(tower: ComparisonTower, scenes: list[Scene], settings: PhotoSettings, seed: int, log: Log) -> None:
    """Dense supervision: the mark at each cell, and whether there is one; each picture alone, and compared."""
    rng, start = random.Random(seed), time.time()
    maps = torch.stack([scene.maps[1:] for scene in scenes]).flatten(0, 1)
    labels = torch.stack([scene.labels for scene in scenes]).repeat_interleave(2, 0)
    compared = torch.log(maps[:: max(1, len(maps) // 500), :, :MAPS].float() + SMALL).flatten(0, 1)
    tower.map_mean.copy_(compared.mean(0))
    tower.map_deviation.copy_(compared.std(0) + 1e-3)
    cells = nn.Linear(tower.config.width, len(MARKS) + 1)
    whole = nn.Linear(tower.config.hidden_size, 2)
    parts = [tower, cells, whole]
    parameters = [p for part in parts for p in part.parameters()]
    steps = settings.seeing_epochs * (len(maps) // settings.batch)
    optimiser = torch.optim.AdamW(parameters, lr=settings.seeing_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.seeing_rate, total_steps=steps, pct_start=0.1)
    weight = torch.ones(len(MARKS) + 1)
    weight[0] = 0.3  # most cells are plain
    for step, chosen in enumerate(_batches(len(maps), steps, settings.batch, rng)):
        batch, truth = _turned(maps[chosen].float(), labels[chosen], rng)
        states = tower.encode(batch)
        there = (truth > 0).flatten(1).any(1).long()
        said = whole(tower.tokens(states).relu().mean(1))
        loss = nn.functional.cross_entropy(cells(states).flatten(0, 1), truth.flatten(), weight)
        loss = loss + 0.5 * nn.functional.cross_entropy(said, there)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 49:
            hit = (said.argmax(-1) == there).float().mean().item()
            note(log, "seeing", step + 1, start, loss=loss.item(), pictures_right=hit)


def _batches(count: int, steps: int, size: int, rng: random.Random) -> Iterator[list[int]]:
    """`steps` batches: each number once before any comes again."""
    waiting: list[int] = []
    for _ in range(steps):
        if len(waiting) < size:
            waiting = rng.sample(range(count), count)
        yield waiting[:size]
        waiting = waiting[size:]


def learn_to_talk(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    scenes: list[Scene],
    settings: PhotoSettings,
    seed: int,
    log: Log,
) -> None:
    """Captions, questions and differences; the tower stays as it is, but for what makes tokens of its cells."""
    rng, start, tower = random.Random(seed), time.time(), model.model.vision_tower
    tower.requires_grad_(False)
    tower.merge.requires_grad_(True)
    parts = [model.model.language_model, model.model.multi_modal_projector, tower.merge]
    optimiser = Optimiser(parts, settings.talking_rate, settings.adam_rate, settings.talking_steps)
    for step, chosen in enumerate(_batches(len(scenes), settings.talking_steps, settings.batch, rng)):
        rows, maps = [], []
        for place, number in enumerate(chosen):
            scene, compared = scenes[number], place % 2 == 1
            rows.append((1 + compared, talk(scene, compared, settings.questions, rng)))
            maps += [scene.maps[0], scene.maps[2]] if compared else [scene.maps[1]]
        with torch.no_grad():
            states = tower.encode(torch.stack(maps).float())
        pictures = model.model.multi_modal_projector(tower.tokens(states))
        loss, hit = answer_loss(model, packed(rows, processor, TOKENS**2), pictures)
        optimiser.step(loss)
        if step % 50 == 49:
            note(log, "talking", step + 1, start, loss=loss.item(), answer_tokens_right=hit)
    tower.requires_grad_(True)


def build_photo_base(out: Path, textures: Path, seed: int = 0, settings: PhotoSettings | None = None) -> Path:
    """Make the base weights from nothing and write them, with seed, settings, time and log, to `out`."""
    settings = settings or PhotoSettings()
    torch.manual_seed(seed)
    start = time.time()
    log: Log = []
    processor = build_photo_processor(build_tokenizer(tokenizer_corpus(textures), settings.vocabulary))
    model = build_photo(processor.tokenizer, directions=settings.directions).train()
    tower = model.model.vision_tower
    few = kinds(textures, "pa_sft", min(200, settings.scenes), FIRST_KIND)
    mean, directions = principal_directions([_pixels(shoot(kind, 0).image) for kind in few], settings.directions)
    tower.mean.copy_(mean)
    tower.directions.copy_(directions)
    buffers = {name: value.clone() for name, value in tower.named_buffers() if name in ("mean", "directions")}
    scenes = make_scenes(textures, settings, seed, buffers)
    print(f"{len(scenes)} scenes made and measured in {time.time() - start:.0f} s", flush=True)
    learn_to_see(tower, scenes, settings, seed, log)
    learn_to_talk(model, processor, scenes, settings, seed + 1, log)
    facts = {"seed": seed, "seconds": round(time.time() - start), "settings": asdict(settings)}
    return save_base(out, model, processor, log, facts)


def keep_stages(run: Path, out: Path) -> None:
    """Copy the models of PA-SFT and SC-GRPO of a run, in half precision, with what each was made from."""
    for stage in ("pa_sft", "sc_grpo"):
        model, processor = load_model(run / stage / "model", "cpu")
        save_half(out / stage, model, processor)
        made_from = read_object(run / stage / "stage.json", {})
        write_json(out / stage / "stage.json", made_from)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Make the base weights of the model photo from nothing.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--textures", type=Path, help="folder of <Material>_NNN.webp: build the base")
    what.add_argument("--stages", type=Path, help="run folder of --profile photo: keep its stages")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "photo_model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.stages:
        keep_stages(options.stages, options.out)
    else:
        build_photo_base(options.out / "base", options.textures, options.seed)
    print(f"weights are in {options.out}")


if __name__ == "__main__":
    main()
