"""Both stages on a tiny model: TRL's own trainers, a few steps, and what happens when a run is broken off."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch
from datasets import Dataset, Sequence
from datasets import Image as Picture
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from trl import GRPOConfig, SFTConfig

from iadr1_lib.data import open_image
from iadr1_lib.errors import UserError
from iadr1_lib.models import ModelSettings, load_model
from iadr1_lib.records import read_rows
from iadr1_lib.runs import load_profile, profile_names
from iadr1_lib.training import PaSftSettings, ScGrpoSettings, dataset, stages, trainers
from iadr1_lib.training.stages import StageFolder, save_model

SFT = replace(  # 4-5 steps
    load_profile("smoke").settings("pa_sft", PaSftSettings), per_device_train_batch_size=4, num_train_epochs=1.34
)
GRPO = replace(
    load_profile("smoke").settings("sc_grpo", ScGrpoSettings),
    max_steps=4, num_generations=2, per_device_train_batch_size=4, max_completion_length=6,
)  # fmt: skip
Train = Callable[..., Path]


class Killed(Exception):
    """Stands for whatever ends a run in the middle."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_vlm.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def deterministic() -> Iterator[None]:
    """The same numbers at each run on a GPU, too: only there do sums come in any order."""
    if not torch.cuda.is_available():
        yield
        return
    with pytest.MonkeyPatch.context() as patch, sdpa_kernel(SDPBackend.MATH):
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["pa_sft", "sc_grpo"])
def stage(request: pytest.FixtureRequest, world: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Train, Any]:
    """train(out, settings, ...) of one stage, and settings for it."""
    function: Any = {"pa_sft": trainers.train_pa_sft, "sc_grpo": trainers.train_sc_grpo}[request.param]
    honest = trainers.rewards.reward_functions
    monkeypatch.setattr(trainers.rewards, "reward_functions", lambda *args: [consistency_reward, *honest(*args)[1:]])

    def train(out: Path, settings: Any, **options: Any) -> Path:
        return function(world["model"], world[request.param], out, settings, **options)

    return train, SFT if request.param == "pa_sft" else GRPO


def consistency_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Spreads a random model's completions, which the course's rewards would all give 0: nothing would be learnt."""
    return [sum(map(ord, c[-1]["content"])) % 7 / 7 for c in completions]


def one_step(settings: Any) -> Any:
    return replace(settings, **({"num_train_epochs": 0.34} if settings is SFT else {"max_steps": 1}))


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def far(a: Path, b: Path) -> float:
    """The largest difference of two models' weights."""
    first, second = weights(a), weights(b)
    return max(float((first[k] - second[k]).abs().max()) for k in first)


def killed_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose call of this number (1, 2, ...) breaks the run off."""
    calls = itertools.count(1)

    def call(*args: Any) -> Any:
        if next(calls) == number:
            raise Killed
        return function(*args)

    return call


def rising(start: int = 0) -> Callable[..., float]:
    scores = itertools.count(start)
    return lambda model, processor: float(next(scores))


def log_without_times(out: Path) -> list[dict[str, str]]:
    clock = ("time", "per_second", "bf16_share", "runtime", "seconds/")
    return [
        {k: v for k, v in row.items() if not any(c in k for c in clock)} for row in tiny_vlm.read_csv(out / "log.csv")
    ]


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_sets_every_hyper_parameter_by_trls_name(name: str) -> None:
    profile = load_profile(name)
    for section, kind in {"pa_sft": PaSftSettings, "control": PaSftSettings, "sc_grpo": ScGrpoSettings}.items():
        settings = profile.settings(section, kind)
        documented = {field.name for field in fields(SFTConfig if kind is PaSftSettings else GRPOConfig)}
        assert set(settings.for_trl()) <= documented
        chosen = settings.per_device_train_batch_size == "auto"
        other = "gradient_accumulation_steps" if chosen else "per_device_step_size"
        may_lack = {"frozen_share", "reward_parts", "taught_sentences", "report_to", other}
        assert set(asdict(settings)) - may_lack <= set(profile.section(section))
        with pytest.raises(UserError, match=rf"profile {name} .*, section {section}: unknown key learnin_rate"):
            values = profile.sections | {section: profile.section(section) | {"learnin_rate": 1}}
            replace(profile, sections=values).settings(section, kind)
        with pytest.raises(UserError, match=rf"profile {name} .*, section {section}: save_steps is wrong"):
            values = profile.sections | {section: profile.section(section) | {"save_steps": "often"}}
            replace(profile, sections=values).settings(section, kind)


def test_what_trl_refuses_is_told_before_anything_is_made(world: dict[str, Path], tmp_path: Path) -> None:
    """Three completions are no whole number of groups of two; and there is no such schedule."""
    for change in ({"per_device_train_batch_size": 3}, {"lr_scheduler_type": "zigzag"}):
        with pytest.raises(UserError, match=f"GRPOConfig refuses.*{list(change.values())[0]}"):
            trainers.train_sc_grpo(world["model"], world["sc_grpo"], tmp_path, replace(GRPO, **change))
    assert not any(tmp_path.iterdir())


def test_a_step_stays_the_same_in_other_numbers_of_processes() -> None:
    assert SFT.in_processes(1, planned=1) is SFT
    with pytest.raises(ValueError, match="save_step"):
        replace(SFT, save_step=3)
    for processes, planned, share in ((2, 1, (2, 1)), (1, 4, (4, 4)), (4, 2, (2, 1))):
        shared = SFT.in_processes(processes, planned)
        assert (shared.per_device_train_batch_size, shared.gradient_accumulation_steps) == share
        assert shared.step_size(processes) == SFT.step_size(planned)
    with pytest.raises(UserError, match="a step of 4 samples cannot be shared by 3 processes"):
        SFT.in_processes(3, planned=1)


def test_a_stage_leaves_model_log_and_facts(stage: tuple[Train, Any], tmp_path: Path, world: dict[str, Path]) -> None:
    train, settings = stage
    model = train(tmp_path, settings)
    assert model == tmp_path / "model"
    load_model(model)
    assert far(model, world["model"]) > 0
    rows = tiny_vlm.read_csv(tmp_path / "log.csv")
    wanted = {"loss", "mean_token_accuracy"} if settings is SFT else {"reward", "kl", "rewards/accuracy_reward/mean"}
    assert {"step", "learning_rate"} | wanted <= set(rows[0])
    if settings is GRPO:
        assert 0 < float(rows[0]["seconds/writing"]) < float(rows[0]["step_time"])
    facts = json.loads((tmp_path / "stage.json").read_text())
    assert facts["seed"] == 0 and facts["steps"] >= 2 and facts["settings"]["save_steps"] == 2
    assert not (tmp_path / "checkpoints").exists()


def test_parts_that_a_stage_freezes_stay_as_they_were(
    stage: tuple[Train, Any], tmp_path: Path, world: dict[str, Path]
) -> None:
    train, settings = stage
    before = weights(world["model"])
    after = weights(train(tmp_path / "stage", replace(settings, frozen=("tower",), keep="last")))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("vision_tower" in name for name in changed)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_part_is_trained_after_its_share_of_the_steps(tmp_path: Path, world: dict[str, Path], rank: int) -> None:
    towers: list[torch.Tensor] = []

    def note(model: Any, processor: Any) -> float:
        towers.append(torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "vision_tower" in n]))
        return 0.0

    settings = replace(SFT, frozen=("tower",), frozen_share=0.5, save_steps=1)
    model = ModelSettings(lora_rank=rank, lora_alpha=rank)
    trainers.train_pa_sft(world["model"], world["pa_sft"], tmp_path, settings, dev_score=note, model=model)
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(towers)]
    still = len(towers) // 2
    assert not any(moved[: still - 1]) and all(moved[still:]) == (rank == 0)


def test_a_finished_stage_is_used_again_until_its_inputs_change(stage: tuple[Train, Any], tmp_path: Path) -> None:
    train, settings = stage
    settings = one_step(settings)
    file = train(tmp_path, settings) / "model.safetensors"
    made = [file.stat().st_mtime_ns]
    shared = replace(settings, per_device_train_batch_size=2, gradient_accumulation_steps=2)  # the same step
    other = replace(settings, learning_rate=settings.learning_rate / 2)
    for changed, seed in ((settings, 0), (shared, 0), (other, 0), (other, 1)):
        train(tmp_path, changed, seed=seed)
        made.append(file.stat().st_mtime_ns)
    assert made[0] == made[1] == made[2] and len(set(made)) == 3


def test_a_broken_off_run_ends_with_the_weights_of_an_unbroken_one(
    stage: tuple[Train, Any], tmp_path: Path, world: dict[str, Path]
) -> None:
    train, settings = stage
    whole = train(tmp_path / "whole", settings, dev_score=rising())
    with pytest.raises(Killed):
        train(tmp_path / "broken", settings, dev_score=killed_at(2, rising()))
    assert not (tmp_path / "broken" / "stage.json").exists()
    checkpoints = tmp_path / "broken" / "unfinished" / "checkpoints"
    assert (checkpoints / "checkpoint-2").is_dir()
    (checkpoints / "checkpoint-4").mkdir(exist_ok=True)  # as a kill while saving would leave it
    assert far(world["model"], checkpoints / "checkpoint-2") > 0
    before = json.loads((tmp_path / "broken" / "unfinished" / "begun.json").read_text())["seconds"]
    resumed = train(tmp_path / "broken", settings, dev_score=rising(1))
    assert far(whole, resumed) <= 1e-5
    assert json.loads((tmp_path / "broken" / "stage.json").read_text())["seconds"] >= round(before, 1) > 0
    steps = [[r["step"] for r in tiny_vlm.read_csv(tmp_path / n / "log.csv")] for n in ("whole", "broken")]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_or_the_last_model_is_kept(stage: tuple[Train, Any], tmp_path: Path, keep: Any) -> None:
    train, settings = stage
    seen: list[dict[str, torch.Tensor]] = []

    def difference(kept: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return max(float((kept[k] - other[k]).abs().max()) for k in kept)

    def falls(model: Any, processor: Any) -> float:
        assert not model.training
        seen.append({k: v.detach().clone() for k, v in model.named_parameters()})
        return -float(len(seen))

    model, _ = load_model(train(tmp_path, replace(settings, keep=keep), dev_score=falls))
    kept = {k: v.detach() for k, v in model.named_parameters()}
    assert len(seen) >= 2
    chosen, other = (0, -1) if keep == "best" else (-1, 0)
    assert difference(kept, seen[chosen]) == 0
    assert difference(kept, seen[other]) > 0
    best = tmp_path / "best.json"
    assert json.loads(best.read_text())["step"] == 2 if keep == "best" else not best.exists()
    logged = [r["dev_score"] for r in tiny_vlm.read_csv(tmp_path / "log.csv") if r["dev_score"]]
    assert [float(v) for v in logged] == [-float(i + 1) for i in range(len(seen))]


def test_the_same_seed_gives_the_same_log_and_scoring_changes_nothing(stage: tuple[Train, Any], tmp_path: Path) -> None:
    train, settings = stage

    def noisy(model: Any, processor: Any) -> float:
        return float(torch.rand(7).sum() + torch.rand(7, device=model.device).sum())

    first = train(tmp_path / "a", settings, seed=3)
    second = train(tmp_path / "b", settings, seed=3)
    assert log_without_times(tmp_path / "a") == log_without_times(tmp_path / "b")
    assert far(first, second) == 0
    train(tmp_path / "c", settings, seed=3, dev_score=noisy)
    losses = [[r["loss"] for r in log_without_times(tmp_path / n) if r["loss"]] for n in "ac"]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
@pytest.mark.parametrize("name, settings", [("pa_sft", SFT), ("sc_grpo", GRPO)])
def test_missing_start_models_and_broken_records_are_user_errors(
    world: dict[str, Path], tmp_path: Path, name: str, settings: Any, content: str | None
) -> None:
    train = getattr(trainers, f"train_{name}")
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match="r.json"):
        train(world["model"], tmp_path / "r.json", tmp_path / "out", settings)
    with pytest.raises(UserError, match="no model folder"):
        train(tmp_path / "none", world[name], tmp_path / "out", settings)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_old_model_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model, processor = tiny_vlm.build()
    save_model(model, processor, tmp_path / "model")
    old = (tmp_path / "model" / "model.safetensors").read_bytes()

    def full(folder: Path, *args: Any, **kwargs: Any) -> None:
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(UserError, match="disk space"):
        save_model(model, processor, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("normal, defective", [(40, 40), (60, 20), (3, 0), (1, 30)])
def test_labels_are_spread_evenly_over_the_steps(normal: int, defective: int) -> None:
    solutions = ["<answer>No</answer>"] * normal
    solutions += ["<location>top</location><type>hole</type><answer>Yes</answer>"] * defective
    rows = [{"id": number, "solution": solution} for number, solution in enumerate(solutions)]
    ordered = dataset.alternate_labels(rows, seed=3)
    assert sorted(row["id"] for row in ordered) == list(range(len(rows)))
    share = defective / len(rows)
    for start in range(0, len(rows) - 7, 8):
        yes = sum("Yes" in row["solution"] for row in ordered[start : start + 8])
        assert abs(yes - 8 * share) <= 1
    assert ordered == dataset.alternate_labels(rows, seed=3)
    if len(rows) > 10:
        assert ordered != dataset.alternate_labels(rows, seed=4)


@pytest.mark.parametrize("damage", ["weights", "optimiser", "state"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_used(
    stage: tuple[Train, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    train, settings = stage
    settings = replace(settings, save_steps=1)
    whole = train(tmp_path / "whole", settings)
    with pytest.raises(Killed):
        train(tmp_path / "broken", replace(settings, keep="last"), dev_score=killed_at(3, rising()))
    last = tmp_path / "broken" / "unfinished" / "checkpoints" / "checkpoint-2"
    names = {"weights": "model.safetensors", "optimiser": "optimizer.pt", "state": "trainer_state.json"}
    file = last / names[damage]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    train(tmp_path / "broken", replace(settings, keep="last"))
    assert "checkpoint-2 is left out" in capsys.readouterr().out
    assert far(whole, tmp_path / "broken" / "model") <= 1e-5


def test_a_gradient_that_is_no_number_stops_the_stage_with_a_sentence(
    stage: tuple[Train, Any], tmp_path: Path, world: dict[str, Path]
) -> None:
    train, settings = stage
    if settings is GRPO and torch.cuda.is_available():
        pytest.skip("drawing from such probabilities trips an assertion, and this process can use the GPU no more")

    def poison(model: Any, processor: Any) -> float:
        model.lm_head.weight.data[:] = float("nan")
        return 0.0

    settings = replace(settings, save_steps=3)
    with pytest.raises(UserError, match=r"not a? ?numbers? at step 4 .* lower the learning rate"):
        train(tmp_path, settings, dev_score=poison)
    assert not (tmp_path / "stage.json").exists()


def test_a_disk_that_fills_while_the_optimiser_is_saved_is_told(
    stage: tuple[Train, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, settings = stage

    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", full)
    with pytest.raises(UserError, match="free some disk space"):
        train(tmp_path, settings)


@pytest.mark.slow
def test_memory_stays_flat_over_300_steps_of_sc_grpo(world: dict[str, Path], tmp_path: Path) -> None:
    code = f"""
        import json, psutil
        from dataclasses import asdict, fields, replace
        import test_training as t
        from iadr1_lib.runs import base_model_dir
        from iadr1_lib.training.stage_log import StageLog
        used, on_step_end = [], StageLog.on_step_end
        def measured(self, args, state, control, **kwargs):
            used.append(psutil.Process().memory_info().rss)
            on_step_end(self, args, state, control, **kwargs)
        StageLog.on_step_end = measured
        settings = replace(t.GRPO, max_steps=300, save_steps=100, max_completion_length=16)
        t.trainers.train_sc_grpo(base_model_dir(), {str(world["sc_grpo"])!r}, {str(tmp_path / "s")!r}, settings)
        open({str(tmp_path / "used.json")!r}, "w").write(json.dumps(used))
    """
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=os.environ | {"PYTHONPATH": path}, timeout=600, check=True
    )
    used = json.loads((tmp_path / "used.json").read_text())
    assert len(used) == 300
    assert max(used[280:]) < 1.05 * max(used[40:60])


# ---------------------------------------------------------------------------------------------- records


def pixels(image: Image.Image) -> list[Any]:
    return [image.mode, image.size, image.tobytes()]


def test_pictures_are_opened_for_training_as_they_are_asked_about(world: dict[str, Path], tmp_path: Path) -> None:
    rows = read_rows(world["pa_sft"])
    before = Dataset.from_list([{"images": [row["images"]]} for row in rows]).cast_column("images", Sequence(Picture()))
    after = dataset.pa_sft_dataset(rows)
    for old, new in zip(before, after, strict=True):  # drawn RGB pictures: the same pixels as by `datasets` alone
        assert [pixels(image) for image in old["images"]] == [pixels(image) for image in new["images"]]
    deep = np.random.default_rng(0).integers(1000, 3000, (9, 7)).astype(np.uint16)
    clear = np.zeros((9, 7, 4), np.uint8)
    for name, array in (("deep", deep), ("clear", clear)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(array).save(path)
        learnt = dataset.pa_sft_dataset([rows[0] | {"images": str(path)}])[0]["images"]
        question = {"image": str(path), "problem": "?", "solution": "<answer>No</answer>"}
        rewarded = dataset.sc_grpo_dataset([question], "strict")[0]["images"]
        assert [pixels(image) for image in (*learnt, *rewarded)] == [pixels(open_image(path))] * 2


def test_an_earlier_turn_is_read_and_the_last_one_learnt(world: dict[str, Path]) -> None:
    row = read_rows(world["pa_sft"])[0]
    question, answer = row["messages"]
    system = {"role": "system", "content": "You are an inspector."}
    talk = [system, question, answer | {"content": "Let me look."}, {"role": "user", "content": "And?"}, answer]
    learnt = dataset.pa_sft_dataset([row | {"messages": talk}], "<end>")[0]
    assert [turn["role"] for turn in learnt["prompt"]] == ["system", "user", "assistant", "user"]
    assert learnt["completion"] == [answer | {"content": answer["content"] + "<end>"}]


@pytest.mark.parametrize(
    "name, change, fault",
    [
        ("pa_sft", {"images": "gone.png"}, r"gone\.png"),
        ("sc_grpo", {"image": "gone.png"}, r"gone\.png"),
        ("sc_grpo", {"solution": "<answer>perhaps</answer>"}, "perhaps"),
    ],
)
def test_a_faulty_record_stops_a_stage_and_old_work_stays(
    world: dict[str, Path], tmp_path: Path, name: str, change: dict[str, str], fault: str
) -> None:
    old = tmp_path / "out" / "model" / "model.safetensors"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    rows = read_rows(world[name])
    rows[3] |= change
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=rf"bad\.json, record 4: .*{fault}"):
        train = getattr(trainers, f"train_{name}")
        train(world["model"], tmp_path / "bad.json", tmp_path / "out", SFT if name == "pa_sft" else GRPO)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"] and old.read_bytes() == b"old"


def test_a_finished_stage_stays_until_the_next_is_whole(stage: tuple[Train, Any], tmp_path: Path) -> None:
    train, settings = stage
    train(tmp_path, settings)
    old = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    changed = replace(settings, learning_rate=settings.learning_rate / 2)
    with pytest.raises(Killed):
        train(tmp_path, changed, dev_score=killed_at(1, rising()))
    log = log_without_times(tmp_path)
    with pytest.raises(Killed):  # it leaves a checkpoint, and starts again all the same
        train(tmp_path, settings, dev_score=killed_at(2, rising()), force=True)
    train(tmp_path, settings)  # nothing to do: it is still there
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == old
    train(tmp_path, settings, force=True)
    assert log_without_times(tmp_path) == log
    # A kill while the new stage takes the old one's place: the next call ends it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageFolder, "put_in_place", lambda folder: None)
        train(tmp_path, changed)
    for module, name in ((stages, "_remove"), (Path, "rename")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, killed_at(3, getattr(module, name)))
            with pytest.raises(Killed):
                train(tmp_path, changed)
    made = train(tmp_path, changed) / "model.safetensors"
    assert made.read_bytes() != old["model.safetensors"]
    assert json.loads((tmp_path / "stage.json").read_text())["settings"]["learning_rate"] == changed.learning_rate
    assert not (tmp_path / "unfinished").exists()


def test_a_stage_says_its_grid_and_how_long_answers_are(
    stage: tuple[Train, Any], tmp_path: Path, world: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = stage
    asked: list[Any] = []
    honest = trainers.rewards.reward_functions
    monkeypatch.setattr(trainers.rewards, "reward_functions", lambda *a: [asked.append(a), *honest(*a)][1:])
    name = "pa_sft" if settings is SFT else "sc_grpo"
    rows = [row | {"grid": 4} for row in read_rows(world[name])]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    train = getattr(trainers, f"train_{name}")
    train(world["model"], tmp_path / "r.json", tmp_path / "out", one_step(settings))
    facts = json.loads((tmp_path / "out" / "stage.json").read_text())
    assert facts["grid"] == 4
    if settings is GRPO:
        assert asked[0][2] == 4 and facts["answer_tokens"] == GRPO.max_completion_length
        return
    processor = load_model(world["model"])[1]
    answers = [row["messages"][1]["content"] + "<|end|>" for row in rows]
    assert facts["answer_tokens"] == max(len(processor.tokenizer(answer)["input_ids"]) for answer in answers)


def test_a_dev_check_by_one_of_several_sharded_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gloo processes with FSDP2's fully_shard: the one that generates waits for the other's weights for ever."""
    trainer = SimpleNamespace(model=None, is_deepspeed_enabled=False, is_fsdp_enabled=True)
    log: Any = SimpleNamespace(dev_score=rising())
    monkeypatch.setattr(trainers, "process_state", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(UserError, match="--engine single or ddp"):
        trainers._run(trainer, StageFolder(tmp_path), tmp_path, log, None, {})
