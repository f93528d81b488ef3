"""Make the mini VLM's base weights, data/mini_base: generic seeing and generic talk, nothing of inspection.

    python data/mini_base_build.py [--out FOLDER] [--seed 0]          # under an hour on two cores

The script lies beside the folder, not in it, because provenance hashes the folder's files (`runs.data_hash`).

Large VLMs come from pre-training on captioned pictures. This script is that pre-training in miniature, in two
lessons. *Seeing*: for every patch of the picture, which mark lies there, if any, and in which cell of the picture the
patch lies. *Talking*: captions, and questions about surfaces, colours, marks and places, some to be answered yes or no.
The pictures come from families of their own. The inspection question, the tags and the word for a flaw never occur:
the base can see and talk, but does not know what an inspector looks for or how he answers.

The loop is written out here because no trainer of TRL serves it: patch labels, and many questions to one picture packed
into one row (each sees the picture and itself, not the other questions).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from iadr1_lib import world
from iadr1_lib.answer import CELLS, DEFECT_TYPES, QUESTION, cell_of_mask
from iadr1_lib.expert_ad import teacher_vocabulary
from iadr1_lib.files import write_json, write_text
from iadr1_lib.models import (
    ASSISTANT,
    END,
    IMAGE_SIZE,
    PATCH_SIZE,
    USER,
    build_mini,
    build_processor,
    build_tokenizer,
)

SIZE = IMAGE_SIZE
PATCHES = SIZE // PATCH_SIZE
COLOURS = {"red": 0.0, "yellow": 0.14, "green": 0.33, "cyan": 0.5, "blue": 0.64, "pink": 0.86}
MARKS = (
    "spot", "line", "ring", "plus", "frame", "bars", "star",
    "hatching", "blotch", "pebble", "dent", "notch", "band", "eye",
)  # fmt: skip
OUTLINES = (None, "disc", None, "plate", "capsule", None, "triangle", "cross", None, "ellipse")
YES_NO = " Answer yes or no ."
FEW, MANY = (0, 1, 1, 2), (3, 4, 5, 6)  # marks in a picture to talk about, and in one to learn seeing from


Log = list[dict[str, Any]]


@dataclass(frozen=True)
class BaseSettings:
    """Sizes of the two lessons; the tests make them small."""

    seeing_steps: int = 1800
    talking_steps: int = 400
    batch: int = 32
    questions: int = 8
    seeing_rate: float = 2e-2
    talking_rate: float = 1e-2
    adam_rate: float = 1.5e-3
    families: int = 300
    scenes: int = 6000
    vocabulary: int = 1024


@dataclass(frozen=True)
class Scene:
    """A generic picture and what is on it: `marks` is a list of (name, colour or None, cell)."""

    image: NDArray[np.uint8]
    patch_labels: NDArray[np.int64]
    surface: str
    outline: str | None
    colour: str
    marks: tuple[tuple[str, str | None, str], ...]


# ---------------------------------------------------------------------------------------------- generic pictures


def _draw_mark(
    name: str, rng: np.random.Generator, canvas: world.Canvas, x: float, y: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], str | None]:
    """One generic mark in any size, strength and colour; returns picture, its pixels and the colour's name."""
    s, X, Y = world, world.X, world.Y
    strength = rng.uniform(0.3, 1.0)
    hue = str(rng.choice(list(COLOURS)))
    tint = rng.random()
    shade, colour = (0.05, "black") if tint < 0.35 else (0.95, "white") if tint < 0.6 else (None, hue)
    if shade is None:
        paint = s.colour_of((COLOURS[hue] + rng.normal(0, 0.03)) % 1, rng.uniform(0.4, 0.9), 0.7)
    else:
        paint = np.full(3, shade)
    dx, dy, r, a = X - x, Y - y, rng.uniform(3, 9), rng.uniform(0, np.pi)
    width = rng.uniform(0.5, 1.4)
    along, across = dx * np.cos(a) + dy * np.sin(a), -dx * np.sin(a) + dy * np.cos(a)
    image = canvas.image
    if name == "dent":
        weight = np.exp(-(dx**2 + dy**2) / (2 * (r * 0.8) ** 2))
        return (
            image + (strength * weight * along / r * rng.choice([-0.8, 0.8]))[..., None],
            weight > 0.4,
            None,
        )
    if name == "band":
        cover = 1 / (1 + np.exp(along / rng.uniform(1, 5)))
        return image * (1 - 0.6 * strength * cover)[..., None], np.abs(along) < 4, None
    if name == "hatching":
        cover = s.opacity(s.blob(rng, x, y, r + 4), 3.0)
        pattern = np.sin(along * 2 * np.pi / rng.uniform(3, 4.5)) * 0.25 + rng.uniform(-0.1, 0.2)
        return image + (strength * cover * pattern)[..., None], cover > 0.4, None
    if name == "notch":
        bite = s.polygon(along, across, int(rng.integers(3, 6)), r)
        image = s.blend(
            image,
            strength * s.opacity(bite),
            canvas.background if rng.random() < 0.5 else image.mean((0, 1)) * 0.7,
        )
        lit = np.where(along > 0, 0.95, 0.05)[..., None]
        return s.blend(image, strength * rng.random() * s.opacity(np.abs(bite) - 0.8), lit), bite < 0, None
    if name == "star":
        arms = int(rng.integers(3, 6))
        distance = np.min(
            [
                s.segment(x, y, x + (r + 5) * np.cos(t), y + (r + 5) * np.sin(t))
                for t in a + 2 * np.pi * np.arange(arms) / arms + rng.normal(0, 0.25, arms)
            ],
            axis=0,
        ) - width  # fmt: skip
    elif name == "eye":
        radius = np.hypot(along / rng.uniform(0.9, 1.7), across)
        wave = np.clip(np.cos(radius * 2 * np.pi / rng.uniform(3.5, 5.5)) * np.exp(-((radius / (r + 2)) ** 2)), 0, 1)
        return s.blend(image, strength * wave, image.mean((0, 1)) * 0.45), radius < r + 2, None
    elif name == "blotch":
        cover = s.opacity(s.blob(rng, x, y, r + 4), rng.uniform(3, 7))
        return s.blend(image, 0.8 * strength * cover, paint), cover > 0.4, colour
    elif name == "pebble":
        shape = s.polygon(along, across, int(rng.integers(4, 7)), 0.7 * r + 1)
        image = s.blend(image, 0.5 * strength * s.opacity(shape - 1.5, 3.0), 0.05)
        image = s.blend(image, strength * s.opacity(shape), paint)
        return (
            s.blend(image, strength * s.opacity(np.hypot(dx + r / 4, dy + r / 4) - 1.2), 1.0),
            shape < 0.5,
            colour,
        )
    else:
        long = rng.uniform(8, 60)
        distance = {
            "spot": lambda: s.blob(rng, x, y, 0.6 * r + 1, 0.15),
            "line": lambda: np.hypot(np.maximum(np.abs(along) - long, 0), across) - width,
            "ring": lambda: np.abs(np.hypot(dx, dy) - r) - width,
            "plus": lambda: np.minimum(s.box(along, across, r, width, 0.3), s.box(along, across, width, r, 0.3)),
            "frame": lambda: np.abs(s.box(along, across, r, r, 0.5)) - width,
            "bars": lambda: np.minimum(
                s.box(along, across - 3, r, width, 0.3), s.box(along, across + 3, r, width, 0.3)
            ),
        }[name]()
    return s.blend(image, strength * s.opacity(distance), paint), distance < 0.8, colour


def _surface_colour(rgb: NDArray[np.float64]) -> str:
    """The nearest colour name of a mean surface colour, or grey."""
    top, low = float(rgb.max()), float(rgb.min())
    if top - low < 0.15 * top:
        return "grey"
    hue = {
        0: ((rgb[1] - rgb[2]) / (top - low)) % 6,
        1: (rgb[2] - rgb[0]) / (top - low) + 2,
        2: (rgb[0] - rgb[1]) / (top - low) + 4,
    }
    turn = float(hue[int(rgb.argmax())]) / 6
    return min(COLOURS, key=lambda c: min(abs(COLOURS[c] - turn), 1 - abs(COLOURS[c] - turn)))


def draw_scene(family: world.Family, rng: np.random.Generator, counts: tuple[int, ...] = FEW) -> Scene:
    """A generic picture with some marks, their number drawn from `counts`."""
    canvas = world.clean_canvas(rng, family)
    colour = _surface_colour(world.colours_of(family)[0])
    labels = np.zeros((PATCHES, PATCHES), dtype=np.int64)
    marks = []
    for _ in range(int(rng.choice(counts))):
        name = str(rng.choice(MARKS))
        x, y = world.random_place(rng, canvas)
        image, covered, mark_colour = _draw_mark(name, rng, canvas, x, y)
        canvas = world.Canvas(image, canvas.inside, canvas.edge, canvas.background, family)
        share = covered.reshape(PATCHES, PATCH_SIZE, PATCHES, PATCH_SIZE).mean((1, 3))
        labels[share > 0.04] = 1 + MARKS.index(name)
        marks.append((name, mark_colour, cell_of_mask(covered)))
    noisy = canvas.image + rng.normal(0, 0.012, canvas.image.shape)
    pixels = (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)
    return Scene(pixels, labels, family.texture, family.outline, colour, tuple(marks))


# ---------------------------------------------------------------------------------------------- generic talk


def _caption(scene: Scene, rng: random.Random) -> str:
    thing = f"a {scene.colour} {scene.outline or 'surface'} with {scene.surface} texture"
    marks = [f"a {c + ' ' if c else ''}{name} at the {cell}" for name, c, cell in scene.marks]
    return f"{thing} and " + " and ".join(marks) + " ." if marks else f"{thing} and no mark ."


def _wh_questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    pairs = [
        ("What texture is this ?", scene.surface),
        ("What color is the surface ?", scene.colour),
        ("What shape is this ?", scene.outline or "surface"),
        ("How many marks are there ?", ("none", "one", "two")[len(scene.marks)]),
        ("Describe the image .", _caption(scene, rng)),
        ("What is in the image ?", _caption(scene, rng)),
    ]
    names = [name for name, _, _ in scene.marks]
    for name, colour, cell in scene.marks:
        if names.count(name) == 1:
            pairs += [(f"Where is the {name} ?", cell)] * 3
            if colour:
                pairs.append((f"What color is the {name} ?", colour))
        if [c for _, _, c in scene.marks].count(cell) == 1:
            pairs.append((f"What is at the {cell} ?", name))
    if len(scene.marks) == 1:
        pairs += [("Where is the mark ?", scene.marks[0][2]), ("What is the mark ?", names[0])] * 3
    return pairs


def _yes_no_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question whose answer is yes as often as no, whatever the picture shows."""
    truth = rng.random() < 0.5
    kind = (
        rng.choice(("mark", "colour", "texture", "place")) if scene.marks else rng.choice(("mark", "colour", "texture"))
    )
    names = [name for name, _, _ in scene.marks]
    if kind == "mark" and not (truth and not names):
        name = rng.choice(names) if truth else rng.choice([m for m in MARKS if m not in names])
        question = rng.choice(("Is there a {} ?", "Are there any {}s in the image ?", "Do you see a {} ?")).format(name)
    elif kind == "place":
        name, _, cell = rng.choice(scene.marks)
        there = [c for n, _, c in scene.marks if n == name]
        question = f"Is the {name} at the {cell if truth else rng.choice([c for c in CELLS if c not in there])} ?"
    elif kind == "texture":
        other = rng.choice([t for t in world.TRAIN_TEXTURES if t != scene.surface])
        question = f"Is this a {scene.surface if truth else other} texture ?"
    else:
        other = rng.choice([c for c in (*COLOURS, "grey") if c != scene.colour])
        question = f"Is the surface {scene.colour if truth else other} ?"
    return question + (YES_NO if rng.random() < 0.6 else ""), "Yes" if truth else "No"


def talk(scene: Scene, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """`count` questions with answers, half of them to be answered yes or no."""
    return [_yes_no_question(scene, rng) if i % 2 else rng.choice(_wh_questions(scene, rng)) for i in range(count)]


def tokenizer_corpus(seed: int) -> list[str]:
    """Generic talk, and the sentences the later stages use, so that each of their words is one token."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    families = base_families(40)
    lines = [text for f in families for pair in talk(draw_scene(f, draw), 40, rng) for text in pair]
    reasoning = [f"{line} {line}" for line in teacher_vocabulary()]  # within a text a word has a blank in front
    return lines + (reasoning + [QUESTION, "Yes No", *MARKS, *CELLS, *DEFECT_TYPES]) * 3


def base_families(count: int) -> list[world.Family]:
    """Families for the base alone: the training split's generators with seeds and colours of their own."""
    outlines, textures = OUTLINES, world.TRAIN_TEXTURES
    return [
        world.Family(
            f"base_{i}",
            "base",
            textures[i % len(textures)],
            outlines[(i // 3) % len(outlines)],
            20_000 + i,
            (0.0, 1.0),
        )
        for i in range(count)
    ]


# ---------------------------------------------------------------------------------------------- lessons


class _SeeingHead(nn.Module):
    """Reads mark and cell off every patch; thrown away after the lesson."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mark, self.cell = nn.Linear(width, len(MARKS) + 1), nn.Linear(width, len(CELLS))


def _pixels(scenes: list[Scene]) -> torch.Tensor:
    """What the processor would give for pictures of the right size: (batch, 3, 96, 96) in [-1, 1]."""
    stack = np.stack([s.image for s in scenes]).astype(np.float32)
    return torch.from_numpy(stack).permute(0, 3, 1, 2) / 127.5 - 1


def _draw_scenes(settings: BaseSettings, counts: tuple[int, ...], seed: int) -> list[Scene]:
    families, rng = base_families(settings.families), np.random.default_rng(seed)
    return [draw_scene(families[i % len(families)], rng, counts) for i in range(settings.scenes)]


def _start_tower(tower: Any, scenes: list[Scene]) -> None:
    """Start values that give the tower a lead in its first hundreds of steps (the lab log has the numbers).

    A transformer from random weights has to find out that near patches belong together and that a patch differs from
    its mean brightness. Whitened patches, positions as waves and attention that starts out local tell it so.
    """
    _whiten_patches(tower, scenes)
    with torch.no_grad():
        tower.embeddings.position_embedding.weight.copy_(_position_waves(tower.config.hidden_size))
    for layer in tower.encoder.layers:
        _start_attention(layer.self_attn)


def _whiten_patches(tower: Any, scenes: list[Scene], floor: float = 1e-3, gain: float = 0.5) -> None:
    """Start the patch embedding from the whitened principal components of patches.

    Mean brightness carries a thousand times the variance of fine detail; unless that is evened out the tower spends its
    first hundreds of steps on it.
    """
    embedding = tower.embeddings.patch_embedding
    patches = nn.functional.unfold(_pixels(scenes), PATCH_SIZE, stride=PATCH_SIZE).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    width = embedding.out_channels
    filters = gain * (vectors[:, -width:] / torch.sqrt(values[-width:] + floor)).T
    with torch.no_grad():
        embedding.weight.copy_(filters.reshape(embedding.weight.shape))
        embedding.bias.copy_(-filters @ mean)


def _position_waves(width: int, scale: float = 0.3, longest: float = 30.0) -> torch.Tensor:
    """Sines and cosines of row and column, (patches, width): near patches get like vectors."""
    rows, columns = np.mgrid[0:PATCHES, 0:PATCHES]
    rates = longest ** -(np.arange(width // 4) / (width // 4))
    waves = [f(place.reshape(-1, 1) * rates) for place in (columns, rows) for f in (np.sin, np.cos)]
    return torch.tensor(scale * np.concatenate(waves, axis=1), dtype=torch.float32)


def _start_attention(attention: Any, like: float = 0.7, noise: float = 0.7, value: float = 0.4) -> None:
    """Mimetic start (Trockman and Kolter, 2023): W_q W_k' near the identity, W_v W_o near its negative.

    A patch then attends first to patches like it in looks and place, as trained transformers do.
    """
    width, size = attention.embed_dim, attention.head_dim
    with torch.no_grad():
        for start in range(0, width, size):
            left, sizes, right = torch.linalg.svd(_near_identity(width, like, noise))
            root = sizes[:size].sqrt()
            attention.q_proj.weight[start : start + size] = (left[:, :size] * root).T
            attention.k_proj.weight[start : start + size] = right[:size] * root[:, None]
        left, sizes, right = torch.linalg.svd(_near_identity(width, -value, value))
        attention.v_proj.weight.copy_(sizes.sqrt()[:, None] * right)
        attention.out_proj.weight.copy_(left * sizes.sqrt())


def _near_identity(width: int, identity: float, noise: float) -> torch.Tensor:
    return noise * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by Newton-Schulz steps (Jordan 2024), for weight matrices.

    torch.optim.Muon does the same in bfloat16, far too slow on a processor without units for it (lab log).
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = _orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * scale)


def _orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """A matrix with the same singular vectors and singular values near 1."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.T


class Optimiser:
    """Muon for the matrices of the layers, AdamW for the rest, both under a one-cycle schedule, gradients clipped."""

    def __init__(self, parts: Iterable[nn.Module], rate: float, adam_rate: float, steps: int) -> None:
        named = [pair for part in parts for pair in part.named_parameters() if pair[1].requires_grad]
        inner = [p for name, p in named if p.ndim == 2 and "layers." in name]
        ids = {id(p) for p in inner}
        self.parameters = [p for _, p in named]
        rest = [p for p in self.parameters if id(p) not in ids]
        adam = torch.optim.AdamW(rest, lr=adam_rate, weight_decay=0.01, betas=(0.9, 0.95))
        self.optimisers: list[torch.optim.Optimizer] = [Muon(inner, rate), adam]
        self.schedules = [
            torch.optim.lr_scheduler.OneCycleLR(
                optimiser, optimiser.defaults["lr"], total_steps=steps, pct_start=0.1, cycle_momentum=False
            )
            for optimiser in self.optimisers
        ]

    def step(self, loss: torch.Tensor) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser, schedule in zip(self.optimisers, self.schedules, strict=True):
            optimiser.step()
            schedule.step()


def _turned(pictures: torch.Tensor, turns: int, flip: bool) -> torch.Tensor:
    """Quarter turns and a mirror: eight pictures from one."""
    turned = torch.rot90(pictures, turns, (-2, -1))
    return turned.flip(-1) if flip else turned


def learn_to_see(model: LlavaForConditionalGeneration, settings: BaseSettings, seed: int, log: Log) -> None:
    """Dense supervision of the tower: the mark and the cell of each patch."""
    tower = model.model.vision_tower
    head = _SeeingHead(model.config.vision_config.hidden_size)
    third = np.arange(PATCHES) * 3 // PATCHES
    cells = torch.from_numpy((third[:, None] * 3 + third[None]).reshape(-1)).expand(settings.batch, -1)
    weight = torch.ones(len(MARKS) + 1)
    weight[0] = 0.3  # most patches are plain
    scenes = _draw_scenes(settings, MANY, seed)
    _start_tower(tower, scenes[:400])
    optimiser = Optimiser([tower, head], settings.seeing_rate, settings.adam_rate, settings.seeing_steps)
    rng, start = np.random.default_rng(seed), time.time()
    for step in range(settings.seeing_steps):
        batch = [scenes[i] for i in rng.integers(0, len(scenes), settings.batch)]
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        pixels = _turned(_pixels(batch), turns, flip)
        labels = _turned(torch.from_numpy(np.stack([s.patch_labels for s in batch])), turns, flip).flatten(1)
        states = tower(pixels, output_hidden_states=True).hidden_states[-1]
        marks, places = head.mark(states), head.cell(states)
        loss = nn.functional.cross_entropy(marks.flatten(0, 1), labels.flatten(), weight)
        loss = loss + 0.2 * nn.functional.cross_entropy(places.flatten(0, 1), cells.flatten())
        optimiser.step(loss)
        if step % 50 == 49:
            there = labels > 0
            hit = (marks.argmax(-1) == labels)[there].float().mean().item()
            note(log, "seeing", step + 1, start, loss=loss.item(), marked_patches_named=hit)


def packed(
    rows: list[tuple[int, list[tuple[str, str]]]], processor: LlavaProcessor, picture_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of pictures and questions: ids, labels, positions (batch, length) and the mask (batch, 1, length, length).

    A row has its number of pictures and its questions with answers. A question with its answer attends to the pictures
    in front and to itself only, at the positions it would have alone.
    """
    tokenizer = processor.tokenizer
    packed_rows = []
    for pictures, pairs in rows:
        marks = ("<image>" * picture_tokens + "\n") * pictures
        ids = tokenizer(USER + marks, add_special_tokens=False).input_ids
        start = len(ids)
        labels, positions, segment = [-100] * start, list(range(start)), [0] * start
        for number, (question, answer) in enumerate(pairs, start=1):
            question_ids = tokenizer(question + END + ASSISTANT, add_special_tokens=False).input_ids
            answer_ids = tokenizer(answer + END, add_special_tokens=False).input_ids
            length = len(question_ids) + len(answer_ids)
            ids += question_ids + answer_ids
            labels += [-100] * len(question_ids) + answer_ids
            positions += range(start, start + length)
            segment += [number] * length
        packed_rows.append((ids, labels, positions, segment))
    length = max(len(r[0]) for r in packed_rows)
    fill = (tokenizer.pad_token_id, -100, 0, -1)
    token_ids, targets, places, segments = (
        torch.tensor([r[k] + [fill[k]] * (length - len(r[k])) for r in packed_rows]) for k in range(4)
    )
    same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
    allowed = same & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    return token_ids, targets, places, mask


def answer_loss(
    model: LlavaForConditionalGeneration, batch: tuple[torch.Tensor, ...], pictures: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Loss on a `packed` batch's answers, and the share of their tokens that are named right; `pictures` come from
    the projector, in the order of their marks."""
    ids, labels, positions, mask = batch
    embedded = model.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter((ids == model.config.image_token_id)[..., None], pictures)
    out = model.model.language_model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions)
    target = labels[:, 1:]
    logits = model.lm_head(out.last_hidden_state[:, :-1][target >= 0])
    loss = nn.functional.cross_entropy(logits, target[target >= 0])
    return loss, (logits.argmax(-1) == target[target >= 0]).float().mean().item()


def learn_to_talk(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    settings: BaseSettings,
    seed: int,
    log: Log,
) -> None:
    """Captions and questions: projector and language model learn, the tower stays as it is.

    So the tower looks at each picture once, before the lesson.
    """
    rng, scenes, start = random.Random(seed), _draw_scenes(settings, FEW, seed), time.time()
    seen = _look_at(model, scenes)
    optimiser = Optimiser(
        [model.model.language_model, model.model.multi_modal_projector],
        settings.talking_rate,
        settings.adam_rate,
        settings.talking_steps,
    )
    for step in range(settings.talking_steps):
        chosen = rng.sample(range(len(scenes)), settings.batch)
        rows = [(1, talk(scenes[i], settings.questions, rng)) for i in chosen]
        batch = packed(rows, processor, PATCHES**2)
        loss, hit = answer_loss(model, batch, model.model.multi_modal_projector(seen[chosen]))
        optimiser.step(loss)
        if step % 50 == 49:
            note(log, "talking", step + 1, start, loss=loss.item(), answer_tokens_right=hit)


@torch.no_grad()
def _look_at(model: LlavaForConditionalGeneration, scenes: list[Scene]) -> torch.Tensor:
    """What the tower hands to the projector, (scenes, patches, width)."""
    parts = [scenes[i : i + 100] for i in range(0, len(scenes), 100)]
    layer, tower = model.config.vision_feature_layer, model.model.vision_tower
    return torch.cat([tower(_pixels(part), output_hidden_states=True).hidden_states[layer] for part in parts])


def note(log: Log, lesson: str, step: int, start: float, **values: float) -> None:
    row = {"lesson": lesson, "step": step, "seconds": round(time.time() - start, 1)}
    row |= {k: round(v, 4) for k, v in values.items()}
    log.append(row)
    print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)


def build_base(out: Path, seed: int = 0, settings: BaseSettings | None = None) -> Path:
    """Make the base weights from nothing and write them, with seed, settings, time and log, to `out`."""
    settings = settings or BaseSettings()
    torch.manual_seed(seed)
    start, log = time.time(), []
    processor = build_processor(build_tokenizer(tokenizer_corpus(seed), settings.vocabulary))
    model = build_mini(processor.tokenizer).train()
    learn_to_see(model, settings, seed, log)
    learn_to_talk(model, processor, settings, seed + 1, log)
    facts = {"seed": seed, "seconds": round(time.time() - start), "settings": asdict(settings)}
    return save_base(out, model, processor, log, facts)


def save_base(
    out: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor, log: Log, facts: dict[str, Any]
) -> Path:
    """Write the weights in half precision, the processor, the log, `facts` as build.json, and checksums."""
    save_half(out, model, processor)
    keys = list(dict.fromkeys(["lesson", "step", "seconds", "loss", *(key for row in log for key in row)]))
    with (out / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(log)
    write_json(out / "build.json", facts)
    return out


def save_half(out: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write the weights in half precision, loaded as float32 again, with the processor and checksums."""
    model.eval().half().save_pretrained(out)
    processor.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"  # what the float16 weights are loaded as
    (out / "config.json").write_text(json.dumps(config, indent=2))
    sums = [
        f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("model.safetensors", "tokenizer.json")
    ]
    write_text(out / "SHA256SUMS", "".join(sums))


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Make the mini VLM's base weights from nothing.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "mini_base", help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"base weights are in {build_base(options.out, options.seed)}")


if __name__ == "__main__":
    main()
