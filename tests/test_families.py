"""Every family of models through both stages, prediction and scoring: the real classes in miniature, TRL's trainers."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import miniatures
import pytest
import tiny_vlm
import torch
from transformers import AutoModelForImageTextToText
from trl import SFTConfig, SFTTrainer

from iadr1_lib.data import hub, open_image
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import balanced_accuracy, prediction, read_answer
from iadr1_lib.models import FAMILIES, MODELS, ModelSettings, family_of, load_model, loading, named
from iadr1_lib.records import Sample, read_rows
from iadr1_lib.runs import load_profile
from iadr1_lib.training import PaSftSettings, ScGrpoSettings, trainers
from iadr1_lib.training.stages import Inputs

SFT = replace(load_profile("smoke").settings("pa_sft", PaSftSettings), per_device_train_batch_size=4, frozen="released")
GRPO = replace(
    load_profile("smoke").settings("sc_grpo", ScGrpoSettings),
    max_steps=2, num_generations=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    max_completion_length=5, learning_rate=1e-3,
)  # fmt: skip
LORA = {"lora_rank": 4, "lora_alpha": 8}

# (images, trained weights, precision of the weights, gradient checkpointing): every pair of values comes up.
CASES = [
    (1, "full", "float32", False),
    (2, "full", "float32", True),
    (1, "lora", "bfloat16", True),
    (2, "lora", "bfloat16", False),
    (1, "full", "bfloat16", False),
    (2, "lora", "float32", True),
]
QUICK = {("llava_onevision", 2), ("qwen2_5_vl", 1), ("llava", 0), ("llava_next", 1), ("qwen2_vl", 2)}


def marked(family: str, number: int) -> Any:
    marks = () if (family, number) in QUICK else (pytest.mark.slow,)
    images, weights, dtype, checkpointing = CASES[number]
    name = f"{family}-{images}-{weights}-{dtype}{'-checkpointing' if checkpointing else ''}"
    return pytest.param(family, CASES[number], id=name, marks=marks)


MATRIX = [marked(family, number) for family in FAMILIES for number in range(len(CASES))]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return tiny_vlm.draw_samples(tmp_path_factory.mktemp("family_pictures"), count=8)


def write_records(samples: list[Sample], folder: Path, images: int) -> tuple[Path, Path]:
    """Both kinds of records, with one picture or with a reference before it."""
    folder.mkdir(parents=True, exist_ok=True)
    sft, grpo = tiny_vlm.write_records(samples, folder)
    if images == 2:
        rows = read_rows(sft)
        for row in rows:
            row["images"] = [samples[0].image, row["images"]]
            row["messages"][0]["content"] = f"<image>\n{row['messages'][0]['content']}"
        sft.write_text(json.dumps(rows))
        rows = read_rows(grpo)
        for row in rows:
            row["image"] = [samples[0].image, row["image"]]
        grpo.write_text(json.dumps(rows))
    return sft, grpo


def spread(completions: list[Any], **kwargs: Any) -> list[float]:
    """Spreads a random model's completions, which the course's rewards would all give 0."""
    return [sum(map(ord, c[-1]["content"])) % 7 / 7 for c in completions]


@pytest.fixture
def something_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = trainers.rewards.reward_functions
    monkeypatch.setattr(trainers.rewards, "reward_functions", lambda *args: [spread, *honest(*args)[1:]])


def changed(before: Path, after: Path, dtype: str) -> dict[str, bool]:
    """For each part of the model, whether training in this precision moved any of its weights."""
    family = family_of(before)
    old, new = (AutoModelForImageTextToText.from_pretrained(str(f), dtype=dtype) for f in (before, after))
    moved = {"tower": False, "projector": False, "language model": False}
    for (name, a), (other, b) in zip(old.named_parameters(), new.named_parameters(), strict=True):
        assert name == other
        moved[family.part_of(name)] |= not torch.equal(a, b)
    return moved


@pytest.mark.usefixtures("something_to_learn")
@pytest.mark.parametrize("family, case", MATRIX)
def test_both_stages_prediction_and_scoring(
    family: str,
    case: tuple[int, str, str, bool],
    pictures: list[Sample],
    miniature: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    images, weights, dtype, checkpointing = case
    settings = ModelSettings(
        family, dtype=dtype, gradient_checkpointing=checkpointing, **(LORA if weights == "lora" else {})
    )  # type: ignore[arg-type]
    start = miniature(family)
    sft, grpo = write_records(pictures, tmp_path, images)
    tuned = trainers.train_pa_sft(start, sft, tmp_path / "pa_sft", SFT, model=settings)
    moved = changed(start, tuned, dtype)
    frozen = FAMILIES[family].frozen
    assert moved["language model"]
    assert [moved[part] for part in ("tower", "projector")] == [
        weights == "full" and part not in frozen for part in ("tower", "projector")
    ]
    reinforced = trainers.train_sc_grpo(tuned, grpo, tmp_path / "sc_grpo", GRPO, model=settings)
    assert changed(tuned, reinforced, dtype)["language model"]
    log = tiny_vlm.read_csv(tmp_path / "sc_grpo" / "log.csv")
    assert all(float(row["loss"]) == float(row["loss"]) for row in log if row["loss"])
    model, processor = load_model(reinforced)
    shown = [[open_image(s.image)] * images for s in pictures[:3]]
    raw = prediction.generate(model, processor, shown, max_new_tokens=4)
    assert len(raw) == 3
    assert 0 <= balanced_accuracy(["yes", "no", "yes"], [read_answer(text) for text, *_ in raw]) <= 100


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_answer_carries_loss(
    family: str, images: int, pictures: list[Sample], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    model, processor = load_model(miniature(family))
    sft, _ = write_records(pictures, tmp_path, images)
    data = trainers.pa_sft_dataset(read_rows(sft), trainers.eos_suffix(processor))
    arguments = SFTConfig(
        output_dir=str(tmp_path), completion_only_loss=True, max_length=None, report_to="none", bf16=False
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=processor)
    batch = trainer.data_collator([data[i] for i in range(3)])
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], data, strict=False):
        learnt = processor.tokenizer.decode(ids[labels != -100])
        end = processor.tokenizer.eos_token
        assert end in learnt, "a model that never sees the end of an answer does not learn to stop"
        assert learnt.split(end)[0].strip() == row["completion"][0]["content"].replace(end, "")
        assert not set(ids[labels != -100].tolist()) & set(loading.image_token_ids(miniature(family), processor))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_of_a_padded_batch_are_those_of_single_rows(
    family: str, images: int, pictures: list[Sample], miniature: Callable[[str], Path]
) -> None:
    """The released trainer fails this for LLaVA: it shifts right-padded rows but not the slice that it scores."""
    model, processor = load_model(miniature(family))
    shown = [[open_image(s.image)] * images for s in pictures[:2]]
    asked = ["Are there any defects ?", "Yes or no , I scan the whole image . Are there any defects in it ?"]
    turns = [
        [{"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]}] for text in asked
    ]
    texts = [processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
    # Of unlike length, as GRPO pads them: prompts left, completions right.
    completions = [[20, 21], [30, 31, 32, 33, 34]]

    def logps(texts: list[str], shown: list[Any], completions: list[list[int]]) -> list[torch.Tensor]:
        inputs = dict(processor(images=shown, text=texts, padding=True, return_tensors="pt"))
        longest = max(map(len, completions))
        added = torch.tensor([[*c, *[processor.tokenizer.pad_token_id] * (longest - len(c))] for c in completions])
        mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in completions])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], added], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], dim=1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(added)], dim=1)
        with torch.inference_mode():
            moved = {key: value.to(model.device) for key, value in inputs.items()}
            logits = model(**moved).logits[:, -longest - 1 : -1].log_softmax(-1).cpu()
        scored = logits.gather(2, added[..., None])[..., 0]
        return [row[: len(c)] for row, c in zip(scored, completions, strict=True)]

    together = logps(texts, shown, completions)
    for number in range(2):
        only = slice(number, number + 1)
        alone = logps(texts[only], shown[only], completions[only])[0]
        assert (together[number] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_adapts_the_language_model_only(family: str, miniature: Callable[[str], Path]) -> None:
    from peft import get_peft_model

    folder = miniature(family)
    config = loading.lora_config(folder, ModelSettings(lora_rank=2, lora_alpha=4))
    adapted = get_peft_model(loading.load_for_training(folder, ModelSettings()), config)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    # seven linear layers in a block, two small matrices each
    assert len(names) == miniatures.SMALL.layers * 7 * 2
    assert all(".language_model." in name for name in names)


def test_adapter_and_merged_model_answer_the_same(
    pictures: list[Sample], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    start = miniature("qwen2_vl")
    sft, _ = write_records(pictures, tmp_path, 1)
    settings = ModelSettings(lora_rank=4, lora_alpha=8)
    merged = trainers.train_pa_sft(start, sft, tmp_path / "s", replace(SFT, learning_rate=1e-2), model=settings)
    assert not list(merged.glob("adapter*")), "a plain model folder"
    model, processor = load_model(merged)
    base, _ = load_model(start)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "s" / "adapter"))
    shown = [[open_image(s.image)] for s in pictures]
    answers = [prediction.generate(m, processor, shown, max_new_tokens=6) for m in (model, adapted.eval())]
    assert [text for text, *_ in answers[0]] == [text for text, *_ in answers[1]]
    untrained = prediction.generate(load_model(start)[0], processor, shown, max_new_tokens=6)
    assert [text for text, *_ in answers[0]] != [text for text, *_ in untrained]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_again_with_all_its_weights_and_settings(
    family: str, pictures: list[Sample], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    model, processor = load_model(miniature(family))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, same = load_model(tmp_path)
    assert type(same).__name__ == type(processor).__name__ and same.chat_template == processor.chat_template
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    if "Onevision" in type(processor).__name__ or "Qwen" in type(processor).__name__:
        assert "video_processor_type" in settings["video_processor"], "what came with the model goes with it"
    # And an answer never holds an image mark, however likely it is made.
    marks = loading.image_token_ids(tmp_path, same)
    assert marks
    with torch.no_grad():
        again.lm_head.weight[marks] = again.lm_head.weight.mean(0) + 10 * again.lm_head.weight.std()
    answers = prediction.generate(again, same, [[open_image(s.image)] for s in pictures[:2]], max_new_tokens=8)
    ids = [same.tokenizer.encode(text, add_special_tokens=False) for text, *_ in answers]
    assert not {i for row in ids for i in row} & set(marks)


def test_seven_models_and_the_shipped_are_known_by_short_name_and_hub_id(shared: Path) -> None:
    sizes = json.loads((shared / "reference" / "model_sizes.json").read_text())
    assert {name for name in sizes if name != "note"} | {"mini", "photo"} == set(MODELS)
    for name, model in MODELS.items():
        if model.hub_id:
            assert sizes[name]["hub_id"] == model.hub_id
            assert named(model.hub_id) is model is named(name)
            wanted = re.sub(r"[^a-z0-9]", "", sizes[name]["class"].lower())
            assert wanted.startswith(model.family.model_type.replace("_", ""))


def test_another_class_works_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "smolvlm"}')
    with pytest.warns(UserWarning, match="smolvlm"):
        family = family_of(tmp_path)
    assert family.frozen == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "config.json").write_text('{"model_type": "llava"}')
        assert family_of(tmp_path).model_type == "llava"


@pytest.mark.parametrize("name", ["llava-9", "no/such/folder"])
def test_an_unknown_model_is_told_with_the_choices(name: str) -> None:
    with pytest.raises(UserError, match="unknown model"):
        loading.model_folder(ModelSettings(name))


def test_a_hub_model_that_was_fetched_is_used_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", away)
    monkeypatch.setattr(hub, "hub_home", lambda name, cache=None: tmp_path / name.replace("/", "--"))
    with pytest.raises(UserError, match="could not be downloaded"):
        loading.model_folder(ModelSettings("qwen2-vl-2b"))
    home = tmp_path / "Qwen--Qwen2-VL-2B-Instruct"
    miniatures.save("qwen2_vl", home / "abc")
    (home / "revision.json").write_text(json.dumps({"revision": "abc", "asked": {"main": "abc"}}))
    assert loading.model_folder(ModelSettings("qwen2-vl-2b")) == home / "abc"


def test_four_bits_need_lora_and_bitsandbytes() -> None:
    with pytest.raises(UserError, match="LoRA"):
        loading.weights_arguments(ModelSettings(four_bit=True))
    if loading.find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match="bitsandbytes"):
            loading.weights_arguments(ModelSettings(four_bit=True, lora_rank=4))


def test_pictures_are_made_smaller_for_training(pictures: list[Sample], tmp_path: Path) -> None:
    sft, grpo = write_records(pictures, tmp_path, 2)
    for data in (
        trainers.pa_sft_dataset(read_rows(sft), max_pixels=50 * 50),
        trainers.sc_grpo_dataset(read_rows(grpo), "strict", max_pixels=50 * 50),
    ):
        assert [image.size for image in data[0]["images"]] == [(50, 50), (50, 50)]


def test_weights_of_the_hub_are_named_by_their_commit(tmp_path: Path) -> None:
    snapshot = tmp_path / "owner--name" / "0123abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "owner--name" / "revision.json").write_text("{}")
    facts = Inputs(snapshot, tmp_path, SFT, ModelSettings(), 0).facts()
    assert facts["start"] == {"commit": "0123abc", "repository": "owner--name"}
