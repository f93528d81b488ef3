"""The course as a chain of steps: which rooms each step joins, which files of a run it reads and writes.

The notebooks and the command line call these functions, so that both do the same thing. Rooms that load torch are
imported where a step needs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iadr1_lib.answer import GRID
from iadr1_lib.course import sources
from iadr1_lib.course.sources import SOURCE, HubSettings, SourceSettings, WorldSettings, training_samples
from iadr1_lib.data import labelled, open_image, released_records
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import protocols
from iadr1_lib.expert_ad import Budget, build, teacher_within
from iadr1_lib.files import write_json
from iadr1_lib.records import Sample, Stage, pa_sft_row, read_rows, stage_of
from iadr1_lib.runs import Run

if TYPE_CHECKING:
    from iadr1_lib.training import EngineSettings

STAGES = ("base", "pa_sft", "sc_grpo", "control")
STAGE_TITLES = {"base": "base", "pa_sft": "PA-SFT", "sc_grpo": "SC-GRPO", "control": "PA-SFT continued"}
_MAKER = {"pa_sft": "04_pa_sft", "sc_grpo": "07_sc_grpo", "control": "07_sc_grpo"}  # the notebook that trains a stage


@dataclass(frozen=True)
class EvaluationSettings:
    """How answers are asked for and read.

    `dev_check_images`: dev pictures of a check while a stage trains; `dev_check_one_shot`: the share of them that are
    asked about with a reference.
    """

    batch: int
    max_new_tokens: int
    parser: str
    base_prompt: str
    dev_check_images: int
    dev_check_one_shot: float = 0.0


@dataclass(frozen=True)
class AttackSettings:
    """Notebook 05's runs that start from a planted hole: records, the share of them with it, and SC-GRPO's sizes."""

    records: int
    share: float
    max_steps: int
    num_generations: int
    per_device_train_batch_size: int


@dataclass(frozen=True)
class ExpertAdSettings:
    """What differs from the paper's records.

    `one_shot_share`: share of the records of each stage that show a normal picture of the category first.
    `answer_only_share`: share of PA-SFT's records without reasoning.
    """

    one_shot_share: float = 0.0
    answer_only_share: float = 0.0


def evaluation_settings(run: Run) -> EvaluationSettings:
    return run.profile.settings("evaluation", EvaluationSettings)


def check_settings(run: Run) -> None:
    """Read every section of the profile, so that a wrong setting is said before anything is drawn or trained.

    Raises:
        UserError: a setting is unknown or ill-typed, the profile wants a GPU and there is none, or the trainer is to
            report to a package that is not installed.
    """
    from iadr1_lib.models import ModelSettings
    from iadr1_lib.training import EngineSettings, PaSftSettings, ScGrpoSettings, launch

    classes: dict[str, type] = {"model": ModelSettings, "engine": EngineSettings, "evaluation": EvaluationSettings}
    classes |= {"pa_sft": PaSftSettings, "sc_grpo": ScGrpoSettings, "control": PaSftSettings}
    classes |= {"world": WorldSettings, SOURCE: SourceSettings, "data": HubSettings, "attack": AttackSettings}
    classes |= {"expert_ad": ExpertAdSettings}
    for section, settings in classes.items():
        if section in run.profile.sections:
            launch.require_reporter(getattr(run.profile.settings(section, settings), "report_to", "none"))
    if "ablations" in run.profile.sections:  # settings in place of SC-GRPO's
        grpo = {"sc_grpo": run.profile.section("sc_grpo") | run.profile.section("ablations")}
        replace(run.profile, sections=grpo).settings("sc_grpo", ScGrpoSettings)
    if engine_settings(run).gpu_gib and not launch.sees_gpu():
        raise UserError(
            f"profile {run.profile.name} trains on a GPU, and torch sees none on this machine: take --profile mini, or "
            "check nvidia-smi and the CUDA build of torch (to try it on the processor all the same: --set "
            "engine.gpu_gib=0)"
        )


# ------------------------------------------------------------------------------------------------ Expert-AD


def build_expert_ad(run: Run) -> Path:
    """Records with reasoning for PA-SFT, questions with labels for SC-GRPO, and for the control the same questions
    with reasoning. Returns the folder. Of the paper's own data set the records are the released ones, without control.
    """
    folder = run.path("expert_ad")
    if run.source == "hub":
        return _released_expert_ad(run, folder)
    grpo_samples = training_samples(run, "sc_grpo")
    built = write_records(run, training_samples(run, "pa_sft"))
    build.export(built, [labelled(sample) for sample in grpo_samples], folder, seed=run.seed)
    control = write_records(run, grpo_samples)
    write_json(folder / "control.json", [pa_sft_row(record) for record in control.records])
    if "expert_ad" in run.profile.sections:
        shares = run.profile.settings("expert_ad", ExpertAdSettings)
        for name, part in (("pa_sft", "pa_sft"), ("sc_grpo", "sc_grpo"), ("control", "sc_grpo")):
            rows = read_rows(folder / f"{name}.json")
            rows = build.some_one_shot(rows, _references(run, part), shares.one_shot_share, run.seed)
            if name != "sc_grpo":
                rows = build.some_answer_only(rows, shares.answer_only_share, run.seed)
            write_json(folder / f"{name}.json", rows)
    return folder


def _references(run: Run, part: str) -> dict[str, str]:
    """Image -> a normal picture of its category, absolute paths; without those whose category has no other one."""
    from iadr1_lib.evaluation import references

    pool = sources.reference_pool(run, part)
    chosen = references(training_samples(run, part), pool, kind="random", seed=run.seed, partial=True)
    return {str(Path(image).absolute()): str(paths[0].absolute()) for image, paths in chosen.items()}


def _released_expert_ad(run: Run, folder: Path) -> Path:
    records = released_records(str(run.profile.section("data")["expert_ad"]))
    pictures: dict[Stage, str] = {"pa_sft": "images", "sc_grpo": "image"}
    for stage, key in pictures.items():
        kept = {sample.image for sample in training_samples(run, stage)}
        rows = [row for row in records.get(stage, []) if np.atleast_1d(row[key])[-1] in kept]
        write_json(folder / f"{stage}.json", rows)
    return folder


def write_records(run: Run, samples: Sequence[Sample], grid: int = GRID) -> build.Built:
    """Records that the run's model can write: in whole sentences, or in the short style where those are too long.

    The mini VLM's vocabulary and `max_completion_length` allow the short style only. With another grid the names of
    places may be longer, and no answer is too long.
    """
    budget = token_budget(run)
    teacher = teacher_within(samples, run.seed, budget)
    limit = budget if grid == GRID else None
    return build.build_records(samples, teacher, repeats=teacher.short, grid=grid, budget=limit)


def token_budget(run: Run) -> Budget:
    """The longest answer that the run's model may write in SC-GRPO, counted by its tokenizer."""
    from iadr1_lib.models import load_processor

    longest = int(run.profile.section("sc_grpo")["max_completion_length"])
    return Budget.of(load_processor(stage_model(run, "base")).tokenizer, longest)


def build_grid_records(run: Run, grid: int) -> Path:
    """PA-SFT's records with places in a grid of `grid` rows and columns -> variants/pa_sft_grid_<grid>.json."""
    out = run.path("expert_ad", "variants", f"pa_sft_grid_{grid}.json")
    if not out.exists():
        built = write_records(run, training_samples(run, "pa_sft"), grid)
        write_json(out, [pa_sft_row(record) for record in built.records])
    return out


# ------------------------------------------------------------------------------------------------ stages


def dev_check(run: Run, count: int | None = None, max_new_tokens: int | None = None) -> Callable[[Any, Any], float]:
    """A function (model, processor) -> balanced accuracy in percent on the first `count` dev pictures.

    Both numbers are the profile's where they are not given.
    """
    from iadr1_lib.evaluation import balanced_accuracy, prediction, read_answer

    evaluation = evaluation_settings(run)
    longest = max_new_tokens or evaluation.max_new_tokens
    samples = training_samples(run, "dev")[: count or evaluation.dev_check_images]
    share = evaluation.dev_check_one_shot
    shown = _references(run, "dev") if share else {}
    images = [[open_image(sample.image)] for sample in samples]
    for place, sample in enumerate(samples[: round(share * len(samples))]):
        if reference := shown.get(str(Path(sample.image).absolute())):
            images[place] = [open_image(reference), *images[place]]

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
    if path.exists() or run.source != "hub":
        return run.require(path, "03_expert_ad")
    source = str(run.profile.section("data")["expert_ad"])
    rows = released_records(source)
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
    from iadr1_lib import models
    from iadr1_lib.models import loading
    from iadr1_lib.training import PaSftSettings, ScGrpoSettings, stages, trainers

    records, out, check = stage_records(run, stage), run.path(stage), None
    start = loading.model_folder(model) if stage == "pa_sft" else _pa_sft_model(run)
    if stage != "sc_grpo":
        _require_fitting(run, records)
    if not any(path.exists() for path in (run.path("world", "dev"), run.path(SOURCE, "dev.jsonl"))):
        stages.print_once(f"{run.folder} has no dev pictures: no dev check is made, and the last model is kept")
    elif engine.config in (launch.SINGLE, "ddp"):  # a model that is sharded over processes does not answer in one
        check = dev_check(run)
    planned = engine_settings(run).processes
    if stage != "sc_grpo":
        sft = run.profile.settings(stage, PaSftSettings).in_processes(engine.processes, planned)
        return trainers.train_pa_sft(start, records, out, sft, run.seed, check, model, force)
    grpo = run.profile.settings(stage, ScGrpoSettings).in_processes(engine.processes, planned)
    engine.with_a_gpu_for_vllm()  # raises where there is none
    if engine.vllm != "off":
        from iadr1_lib.evaluation import vllm_check

        vllm_check.require_passed(model.name)
    how = models.GenerationSettings(**engine.generation())
    return trainers.train_sc_grpo(start, records, out, grpo, run.seed, check, model, engine.rollouts(), force, how)


def _require_fitting(run: Run, records: Path) -> None:
    """Raise UserError for the first record whose answer SC-GRPO would cut: it could never earn the form's reward."""
    budget = token_budget(run)
    for number, row in enumerate(read_rows(records), start=1):
        if stage_of(row) != "pa_sft":
            continue  # the trainer's own check says what is wrong with it
        if excess := budget.excess(str(row["messages"][-1]["content"])):
            raise UserError(
                f"{records}, record {number}: {excess.rstrip('.')} (sc_grpo.max_completion_length): raise that setting "
                "(--set), or write shorter records (iadr1 expert-ad --student)"
            )


def _pa_sft_model(run: Run) -> Path:
    """The model of PA-SFT, or a UserError that says how to make it."""
    path = run.path("pa_sft", "model")
    if run.source == "hub" and not path.exists():
        profile, name = run.profile.name, model_settings(run).name
        where = f"--seed {run.seed} --folder {run.folder}"
        raise UserError(
            f"{path} is missing: iadr1 train --stage pa-sft --profile {profile} --model {name} {where} first"
        )
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
    arguments += ["--folder", str(run.folder)]  # its run.json has the choices
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
