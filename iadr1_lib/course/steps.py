"""The course as a chain of steps: which rooms each step joins, which files of a run it reads and writes.

The notebooks and the command line call these functions, so that both do the same thing. Rooms that load torch are
imported where a step needs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iadr1_lib.answer import GRID
from iadr1_lib.data import Table, labelled, load_mvtec
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import protocols
from iadr1_lib.expert_ad import RuleTeacher, build
from iadr1_lib.files import Journal, write_json
from iadr1_lib.records import Sample, pa_sft_row
from iadr1_lib.runs import Run, commit
from iadr1_lib.world import Family, dev_families, test_families, train_families, write_references, write_world

if TYPE_CHECKING:
    from iadr1_lib.training import EngineSettings

WORD = "mini"  # what `iadr1 evaluate --data` takes for the six mini benchmarks
STAGES = ("base", "pa_sft", "sc_grpo", "control")
STAGE_TITLES = {"base": "base", "pa_sft": "PA-SFT", "sc_grpo": "SC-GRPO", "control": "PA-SFT continued"}
_MAKER = {"pa_sft": "04_pa_sft", "sc_grpo": "07_sc_grpo", "control": "07_sc_grpo"}  # the notebook that trains a stage
REFERENCES_PER_FAMILY = 8


@dataclass(frozen=True)
class WorldSettings:
    """Numbers of families and pictures of the mini world. `test_images` is per benchmark.

    Test and dev pictures are the same for every run seed; training pictures are drawn with the run's seed.
    """

    pa_sft_families: int
    pa_sft_images: int
    sc_grpo_families: int
    sc_grpo_images: int
    dev_images: int
    dev_check_images: int
    test_images: int
    fixed_seed: int


@dataclass(frozen=True)
class EvaluationSettings:
    """How answers are asked for and read."""

    batch: int
    max_new_tokens: int
    parser: str
    base_prompt: str


def world_settings(run: Run) -> WorldSettings:
    return run.profile.settings("world", WorldSettings)


def evaluation_settings(run: Run) -> EvaluationSettings:
    return run.profile.settings("evaluation", EvaluationSettings)


# ------------------------------------------------------------------------------------------------ the world


def training_families(run: Run) -> tuple[list[Family], list[Family]]:
    """Families of PA-SFT and of SC-GRPO: none in common, and SC-GRPO's are of more kinds.

    That is how it goes in a factory: pictures of a new line come labelled; nobody has written reasoning for them.
    """
    world = world_settings(run)
    first = train_families(world.pa_sft_families)
    return first, train_families(world.sc_grpo_families, start=len(first), new_kinds=True)


def draw_training_world(run: Run) -> None:
    """Draw the pictures of Expert-AD (PA-SFT and SC-GRPO, families apart) and of the dev set."""
    world = world_settings(run)
    first, second = training_families(run)
    write_world(run.path("world", "pa_sft"), first, world.pa_sft_images, seed=100 + 2 * run.seed)
    write_world(run.path("world", "sc_grpo"), second, world.sc_grpo_images, seed=101 + 2 * run.seed)
    write_world(run.path("world", "dev"), dev_families(), world.dev_images, world.fixed_seed)


def training_samples(run: Run, part: str) -> list[Sample]:
    """Samples of `part`: "pa_sft", "sc_grpo" or "dev", in the order they were drawn (normal and defective in turn)."""
    root = run.require(run.path("world", part), "02_data")
    return sorted(load_mvtec(root, benchmark=part), key=lambda s: Path(s.image).name)


def benchmark_samples(run: Run, why: str) -> list[Sample]:
    """The six mini benchmarks, drawn if they are not there yet. Each opening is noted in the run with its reason."""
    world = world_settings(run)
    samples: list[Sample] = []
    for number, (name, families) in enumerate(test_families().items()):
        root = run.path("world", "test", name)
        write_world(root, families, world.test_images, seed=world.fixed_seed + 1 + number)
        samples += sorted(load_mvtec(root, benchmark=name), key=lambda s: Path(s.image).name)
    opening = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "why": why, "commit": commit()}
    Journal(run.path("test_openings.jsonl")).append(opening)
    return samples


def benchmark_table(run: Run, why: str) -> Table:
    """The six mini benchmarks with normal training pictures to refer to, drawn of the same families for this alone.

    Those lie apart from the world, as references/<benchmark>/<family>/train/good, and are in no other set.
    """
    pool: list[Sample] = []
    for name, families in test_families().items():
        root = run.path("references", name)
        write_references(root, families, REFERENCES_PER_FAMILY)
        pool += load_mvtec(root, benchmark=name)
    return Table([*benchmark_samples(run, why), *pool])


# ------------------------------------------------------------------------------------------------ Expert-AD


def build_expert_ad(run: Run) -> Path:
    """Records with reasoning for PA-SFT, questions with labels for SC-GRPO, and for the control the same questions
    with reasoning. Returns the folder."""
    folder = run.path("expert_ad")
    grpo_samples = training_samples(run, "sc_grpo")
    built = build_short_records(run, training_samples(run, "pa_sft"))
    build.export(built, [labelled(sample) for sample in grpo_samples], folder, seed=run.seed)
    control = build_short_records(run, grpo_samples)
    write_json(folder / "control.json", [pa_sft_row(record) for record in control.records])
    return folder


def build_short_records(run: Run, samples: Sequence[Sample], grid: int = GRID) -> build.Built:
    """Records in the few words that the mini VLM knows, which come again in many of them."""
    return build.build_records(samples, RuleTeacher(run.seed, short=True), repeats=True, grid=grid)


def build_grid_records(run: Run, grid: int) -> Path:
    """PA-SFT's records with places in a grid of `grid` rows and columns -> variants/pa_sft_grid_<grid>.json."""
    out = run.path("expert_ad", "variants", f"pa_sft_grid_{grid}.json")
    if not out.exists():
        built = build_short_records(run, training_samples(run, "pa_sft"), grid)
        write_json(out, [pa_sft_row(record) for record in built.records])
    return out


# ------------------------------------------------------------------------------------------------ stages


def dev_check(run: Run, count: int | None = None, max_new_tokens: int | None = None) -> Callable[[Any, Any], float]:
    """A function (model, processor) -> balanced accuracy in percent on the first `count` dev pictures.

    Both numbers are the profile's where they are not given.
    """
    from iadr1_lib.data import open_image
    from iadr1_lib.evaluation import balanced_accuracy, prediction, read_answer

    evaluation = evaluation_settings(run)
    longest = max_new_tokens or evaluation.max_new_tokens
    samples = training_samples(run, "dev")[: count or world_settings(run).dev_check_images]
    images = [[open_image(sample.image)] for sample in samples]

    def score(model: Any, processor: Any) -> float:
        answers: list[str | None] = []
        for start in range(0, len(images), evaluation.batch):
            batch = images[start : start + evaluation.batch]
            outputs = prediction.generate(model, processor, batch, max_new_tokens=longest)
            answers += [read_answer(output.raw) for output in outputs]
        return balanced_accuracy([sample.label for sample in samples], answers)

    return score


def engine_settings(run: Run) -> EngineSettings:
    """The profile's engine; one without that section trains in this process."""
    from iadr1_lib.training import EngineSettings

    return run.profile.settings("engine", EngineSettings) if "engine" in run.profile.sections else EngineSettings()


def model_settings(run: Run) -> Any:
    """The profile's models.ModelSettings; one without that section takes the mini VLM."""
    from iadr1_lib.models import ModelSettings

    return run.profile.settings("model", ModelSettings) if "model" in run.profile.sections else ModelSettings()


def stage_records(run: Run, stage: str) -> Path:
    """The records of a stage in the run folder; of the paper's hub data set where the profile names it."""
    path = run.path("expert_ad", f"{stage}.json")
    source = run.profile.sections.get("data", {}).get("expert_ad")
    if path.exists() or source is None:
        return run.require(path, "03_expert_ad")
    from iadr1_lib.data import hub

    rows = hub.released_records(source)
    if stage not in rows:
        raise UserError(f"{source} has no records for {stage}: write them with iadr1 expert-ad, into {path.parent}")
    return write_json(path, rows[stage])


def train_stage(run: Run, stage: str, engine: EngineSettings | None = None, force: bool = False) -> Path:
    """Train "pa_sft", "sc_grpo" or "control" (or take the finished stage) and return its model folder.

    The control is PA-SFT continued on SC-GRPO's pictures, with records written for them: what time buys
    without reinforcement. Its length is the profile's.

    Args:
        engine: in place of the profile's. With several processes this one starts them and passes on what they print.
        force: train a finished stage again; it stays until the new one is whole.
    """
    from iadr1_lib.training import launch

    engine = engine or engine_settings(run)
    model = model_settings(run)
    if model.dtype == "bfloat16" and not model.lora_rank and engine.config in (launch.SINGLE, "ddp"):
        raise UserError(  # small steps on such weights would round to nothing
            "full fine-tuning of bfloat16 weights needs an engine that keeps float32 ones beside them: set model.dtype "
            f"to float32 in profile {run.profile.name}, or take --engine zero3"
        )
    if engine.config == launch.SINGLE:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # else the trainers would spread over all GPUs in sight
    elif not launch.is_launched():
        return _launch_stage(run, stage, engine, force)
    from iadr1_lib.models import loading
    from iadr1_lib.training import PaSftSettings, ScGrpoSettings, stages, trainers

    records, out, check = stage_records(run, stage), run.path(stage), None
    start = loading.model_folder(model) if stage == "pa_sft" else _pa_sft_model(run)
    if "world" in run.profile.sections:
        if run.path("world").is_dir():
            check = dev_check(run)
        else:
            stages.print_once(f"{run.folder} has no drawn world: no dev check is made, and the last model is kept")
    planned = engine_settings(run).processes
    if stage != "sc_grpo":
        sft = run.profile.settings(stage, PaSftSettings).in_processes(engine.processes, planned)
        return trainers.train_pa_sft(start, records, out, sft, run.seed, check, model, force)
    grpo = run.profile.settings(stage, ScGrpoSettings).in_processes(engine.processes, planned)
    engine.with_a_gpu_for_vllm()  # raises where there is none
    if engine.vllm != "off":
        from iadr1_lib.evaluation import vllm_check

        vllm_check.require_passed(model.name)
    return trainers.train_sc_grpo(start, records, out, grpo, run.seed, check, model, engine.rollouts(), force)


def _pa_sft_model(run: Run) -> Path:
    """The model of PA-SFT, or a UserError that says how to make it."""
    path = run.path("pa_sft", "model")
    if "data" in run.profile.sections and not path.exists():
        profile, name = run.profile.name, model_settings(run).name
        raise UserError(f"{path} is missing: iadr1 train --stage pa-sft --profile {profile} --model {name} first")
    return run.require(path, _MAKER["pa_sft"])


def _launch_stage(run: Run, stage: str, engine: EngineSettings, force: bool) -> Path:
    """Start the engine's processes, each of which calls `train_stage`, and wait for them."""
    from iadr1_lib.training import launch

    model = model_settings(run)
    stage_records(run, stage)  # fetched once, before there are several processes
    if stage == "pa_sft":
        from iadr1_lib.models import loading

        loading.model_folder(model)
    arguments = ["train", "--stage", stage.replace("_", "-"), "--profile", run.profile.name, "--seed", str(run.seed)]
    arguments += ["--folder", str(run.folder), "--model", model.name]
    arguments += ["--engine", engine.config, "--processes", str(engine.processes)]
    arguments += ["--vllm", engine.vllm, "--vllm-url", engine.vllm_url, *(["--force"] if force else [])]
    launch.launch(engine.with_a_gpu_for_vllm() if stage == "sc_grpo" else engine, arguments)
    return stage_model(run, stage)


def stage_model(run: Run, stage: str) -> Path:
    """The model folder of a stage, or a UserError that names the notebook which makes it."""
    if stage == "base":
        from iadr1_lib.models import loading

        return loading.model_folder(model_settings(run))
    return run.require(run.path(stage, "model"), _MAKER[stage])


# ------------------------------------------------------------------------------------------------ predictions


def predict_stage(run: Run, stage: str, samples: Sequence[Sample]) -> Path:
    """Answers of a stage's model on `samples` -> predictions/<stage>.jsonl. The base is asked for yes or no."""
    prompt = evaluation_settings(run).base_prompt if stage == "base" else "bare"
    return predict_model(run, stage_model(run, stage), samples, run.path("predictions", f"{stage}.jsonl"), prompt)


def predict_protocol(run: Run, stage: str, name: str, samples: Sequence[Sample]) -> Path:
    """Answers of a stage's model asked by the protocol "released" or "fair" -> predictions/<name>/<stage>.jsonl.

    Answers are as long as the profile lets them be, since the mini VLM has no released length.
    """
    protocol = protocols.protocol(name, "mini", "base" if stage == "base" else "tuned")
    out = run.path("predictions", name, f"{stage}.jsonl")
    return predict_model(run, stage_model(run, stage), samples, out, protocol=protocol)


def predict_model(
    run: Run,
    model: Path,
    samples: Sequence[Sample],
    out: Path,
    prompt: str = "bare",
    max_new_tokens: int | None = None,
    **asked: Any,
) -> Path:
    """Answers of any model of this run, asked as the profile says (or with another limit of tokens) -> out.

    `asked` goes to `prediction.predict`.
    """
    from iadr1_lib.evaluation import prediction

    evaluation = evaluation_settings(run)
    longest = max_new_tokens or evaluation.max_new_tokens
    return prediction.predict(
        model, samples, out, prompt=prompt, batch_size=evaluation.batch, max_new_tokens=longest, seed=run.seed, **asked
    )
