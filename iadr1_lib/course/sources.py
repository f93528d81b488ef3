"""Where the pictures of a run come from: the drawn world, data sets of the user's own, or the paper's on the hub.

    prepare(run)                          # draws the world, or reads, checks and splits the data sets
    training_samples(run, "pa_sft")       # or "sc_grpo", "dev"
    benchmark_samples(run, "final numbers")

All give the same parts: "pa_sft" and "sc_grpo" to train on, "dev" to choose by, and the test. What was read of data
sets lies in the run's source/, one JSON Lines file of samples per part.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iadr1_lib.data import (
    Table,
    category_of,
    check_health,
    content_hash,
    load_hub,
    load_mvtec,
    load_samples,
    read_snapshot,
    recorded_folder,
    share_depth,
    split_samples,
)
from iadr1_lib.errors import UserError
from iadr1_lib.expert_ad import UNUSABLE, draw_sets
from iadr1_lib.files import Journal, json_lines, read_object, write_json, write_text
from iadr1_lib.records import Sample
from iadr1_lib.runs import Run, commit, data_hash
from iadr1_lib.world import (
    Family,
    dev_families,
    kinds,
    test_families,
    train_families,
    write_photographs,
    write_references,
    write_world,
)

WORD = "mini"  # what `iadr1 evaluate --data` takes for the six mini benchmarks
PARTS = ("pa_sft", "sc_grpo", "dev", "test")
REFERENCES_PER_FAMILY = 8
FEWEST_DEFECTIVE = 20  # pictures with masks, in training, dev and test together
SOURCE = "source"  # the folder of a run that holds the parts of the user's data sets


@dataclass(frozen=True)
class WorldSettings:
    """Numbers of families and pictures of the mini world. `test_images` is per benchmark.

    Test and dev pictures are the same for every run seed; training pictures are drawn with the run's seed. With
    `textures`, a folder of photographed ones, training and dev pictures are made of these (`world.photographs`).
    """

    pa_sft_families: int
    pa_sft_images: int
    sc_grpo_families: int
    sc_grpo_images: int
    dev_images: int
    test_images: int
    fixed_seed: int
    textures: str | None = None


@dataclass(frozen=True)
class SourceSettings:
    """Most pictures of each part that are taken of data sets of one's own; None: all. `test_images` is per data set."""

    pa_sft_images: int | None
    sc_grpo_images: int | None
    dev_images: int | None
    test_images: int | None


def world_settings(run: Run) -> WorldSettings:
    return run.profile.settings("world", WorldSettings)


# ------------------------------------------------------------------------------------------------ either source


def prepare(run: Run) -> list[str]:
    """Make the parts of the run's source, unless they are there already; returns sentences that say what they are.

    Raises:
        UserError: a data set cannot be trained on; nothing is replaced.
    """
    if run.source == "world":
        draw_training_world(run)
        return ["The pictures are drawn: families of training, dev and test share no texture, outline or colour."]
    if run.source == "folders":
        return _prepare_folders(run)
    return _prepare_hub(run)


def training_samples(run: Run, part: str) -> list[Sample]:
    """Samples of `part`: "pa_sft", "sc_grpo" or "dev"; normal and defective in turn, as far as there are both."""
    if run.source != "world":
        return _read_part(run, part)
    pictures = [sample for sample in _world_table(run, part) if sample.split == "test"]
    return sorted(pictures, key=lambda s: Path(s.image).name)


def reference_pool(run: Run, part: str) -> list[Sample]:
    """Normal pictures that may stand before those of `part` as references: kept for that, or else the part's own.

    Those of data sets count as "train", however they were filed: within a part each may serve the others.
    """
    if run.source != "world":
        return [replace(sample, split="train") for sample in _read_part(run, part) if sample.label == "no"]
    return [sample for sample in _world_table(run, part) if sample.label == "no"]


def _world_table(run: Run, part: str) -> Table:
    return load_mvtec(run.require(run.path("world", part), "02_data"), benchmark=part)


def benchmark_samples(run: Run, why: str) -> list[Sample]:
    """The test pictures; the six mini benchmarks are drawn if they are not there yet.

    Each opening is noted in the run with its reason.
    """
    samples = _drawn_benchmarks(run) if run.source == "world" else _read_part(run, "test")
    opening = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "why": why, "commit": commit()}
    Journal(run.path("test_openings.jsonl")).append(opening)
    return samples


# ------------------------------------------------------------------------------------------------ the drawn world


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
    if world.textures:
        _photograph_training_world(run, world, Path(world.textures))
        return
    first, second = training_families(run)
    write_world(run.path("world", "pa_sft"), first, world.pa_sft_images, seed=100 + 2 * run.seed)
    write_world(run.path("world", "sc_grpo"), second, world.sc_grpo_images, seed=101 + 2 * run.seed)
    write_world(run.path("world", "dev"), dev_families(), world.dev_images, world.fixed_seed)


def _photograph_training_world(run: Run, world: WorldSettings, textures: Path) -> None:
    """Pictures made of photographed textures, each kind with references of its own; no texture is in two parts."""
    first, images = run.seed * 10_000, {"pa_sft": world.pa_sft_images, "sc_grpo": world.sc_grpo_images}
    families = {"pa_sft": world.pa_sft_families, "sc_grpo": world.sc_grpo_families}
    for part, count in images.items():
        products = kinds(textures, part, families[part], first)
        write_photographs(run.path("world", part), products, count, seed=100 + 2 * run.seed)
    write_photographs(run.path("world", "dev"), kinds(textures, "dev", 60), world.dev_images, world.fixed_seed)


def _drawn_benchmarks(run: Run) -> list[Sample]:
    world = world_settings(run)
    samples: list[Sample] = []
    for number, (name, families) in enumerate(test_families().items()):
        root = run.path("world", "test", name)
        write_world(root, families, world.test_images, seed=world.fixed_seed + 1 + number)
        samples += sorted(load_mvtec(root, benchmark=name), key=lambda s: Path(s.image).name)
    return samples


def drawn_examples(run: Run) -> list[Sample]:
    """Some drawn pictures with masks, for a run whose own pictures have none."""
    root = run.path("examples")
    write_world(root, train_families(8), 64, seed=100 + 2 * run.seed)
    return sorted(load_mvtec(root, benchmark="examples"), key=lambda s: Path(s.image).name)


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


# ------------------------------------------------------------------------------------------------ own data sets


def source_hash(run: Run) -> str:
    """Hash of what the parts are made from: the files of all data sets, how they are split, seed and sizes."""
    chosen = run.choices
    given = (chosen.data, chosen.test, chosen.hold_out, run.profile.sections.get(SOURCE), run.seed)
    return f"{data_hash([*chosen.data, *chosen.test])} {given}"


def _prepare_folders(run: Run) -> list[str]:
    made_from = source_hash(run)
    if (noted := _noted(run, made_from)) is not None:
        return noted
    problems: list[dict[str, Any]] = []
    pool = [sample for folder in run.choices.data for sample in _usable(folder, problems, with_place=True)]
    tests = [sample for folder in run.choices.test for sample in _usable(folder, problems, with_place=False)]
    tests = [sample for sample in tests if sample.split == "test"]  # as `iadr1 evaluate` takes them
    _require_enough(run, pool, problems)
    split = split_samples(pool, run.seed, tests, run.choices.hold_out)
    _require_both_labels(split.test)
    limits = run.profile.settings(SOURCE, SourceSettings)
    drawn = draw_sets(split.train, run.seed, tests=[*split.dev, *split.test])
    parts = {
        "pa_sft": drawn.pa_sft[: limits.pa_sft_images],
        "sc_grpo": drawn.sc_grpo[: limits.sc_grpo_images],
        "dev": _in_turn(split.dev, run.seed)[: limits.dev_images],
        "test": _limited(split.test, limits.test_images, run.seed),
    }
    sentences = [*split.sentences, *_counted(parts)]
    before = run.path(SOURCE, "source.json").exists()
    problems += [{"image": image, "reason": why} for image, why in split.left_out.items()] + drawn.turned_away
    _write_parts(run, parts, problems, sentences, made_from)
    changed = "The pictures, or the choices of how to split them, have changed: they were split anew, train again."
    return [changed, *sentences] if before else sentences


def _require_both_labels(test: Sequence[Sample]) -> None:
    """Raise UserError for a data set of the test that has one label only: balanced accuracy needs both."""
    for name in dict.fromkeys(sample.benchmark for sample in test):
        labels = {sample.label for sample in test if sample.benchmark == name}
        if len(labels) < 2:
            lacking = "defective" if labels == {"no"} else "good"
            raise UserError(
                f"{name} has no {lacking} pictures to test on, and a test takes both: add some, or name another --test"
            )
    if not test:
        raise UserError("there are no pictures to test on (<category>/test/good, <category>/test/<type>): name others")


def _counted(parts: Mapping[str, Sequence[Sample]]) -> list[str]:
    """A sentence with the numbers of pictures, and another where there is little to learn from."""
    titles = {"pa_sft": "PA-SFT", "sc_grpo": "SC-GRPO", "dev": "dev", "test": "test"}
    defective = {part: sum(sample.label == "yes" for sample in samples) for part, samples in parts.items()}
    counts = [f"{title} {len(parts[part])} ({defective[part]})" for part, title in titles.items()]
    sentences = [f"Pictures, defective ones in brackets: {', '.join(counts)}."]
    if (few := defective["pa_sft"] + defective["sc_grpo"]) < FEWEST_DEFECTIVE:
        sentences.append(f"Only {few} defective pictures are left to train on: expect little.")
    return sentences


def _noted(run: Run, made_from: str) -> list[str] | None:
    """The sentences on the parts that are there; None where there are none, or they are made from something else."""
    note = read_object(run.path(SOURCE, "source.json"), {})
    if note.get("made from") != made_from or not all(run.path(SOURCE, f"{part}.jsonl").is_file() for part in PARTS):
        return None
    return [str(sentence) for sentence in note["sentences"]]


def _write_parts(
    run: Run, parts: dict[str, list[Sample]], problems: list[dict[str, Any]], sentences: Sequence[str], made_from: str
) -> None:
    for part, samples in parts.items():
        samples = [replace(s, type=category_of(s)) if s.label == "yes" else s for s in samples]
        if part != "test":  # as in the drawn world: the part is the set that a number is of
            samples = [replace(sample, benchmark=part) for sample in samples]
        write_text(run.path(SOURCE, f"{part}.jsonl"), json_lines(map(asdict, samples)))
    write_text(run.path(SOURCE, "left_out.jsonl"), json_lines(problems))
    counts = {part: dict(Counter(sample.label for sample in samples)) for part, samples in parts.items()}
    note = {"made from": made_from, "sentences": sentences, "pictures": counts, "left out": len(problems)}
    write_json(run.path(SOURCE, "source.json"), note)  # last: without it all is made again


def _usable(folder: str, problems: list[dict[str, Any]], with_place: bool) -> Iterator[Sample]:
    """The samples of a data set that can be used, paths absolute; the others are noted in `problems`.

    `with_place`: a defective picture needs a mask that says where. Without, its label is enough.
    """
    table = load_samples(Path(folder).absolute(), strict=False)
    faults = UNUSABLE if with_place else {"unreadable"}
    bad: dict[str, str] = {}
    for problem in check_health(table):
        if problem.kind in faults:
            bad.setdefault(problem.image, problem.kind)
    problems += [{"image": p.image, "reason": p.kind} for p in table.passed_over]
    problems += [{"image": image, "reason": kind} for image, kind in bad.items()]
    yield from (sample for sample in table if sample.image not in bad)


def _require_enough(run: Run, pool: Sequence[Sample], problems: list[dict[str, Any]]) -> None:
    """Raise UserError where there is too little to train on; it says what is possible instead."""
    where = ", ".join(run.choices.data)
    reasons = Counter(problem["reason"] for problem in problems)
    listed = f" ({', '.join(f'{reason} {n}' for reason, n in reasons.most_common(4))} left out)" if reasons else ""
    counts = Counter(sample.label for sample in pool)
    instead = "what is possible with these pictures: iadr1 inspect or iadr1 evaluate with a model that is there already"
    if not counts["yes"] and reasons["defect without mask"]:
        raise UserError(
            f"{where} has no mask for any defective picture, and a place cannot be learnt without: put masks beside "
            f"them (ground_truth/<type>/<name>_mask.png, docs/expert-ad.md); {instead}"
        )
    if len(counts) < 2:
        word = "defective" if counts["no"] else "good"
        raise UserError(f"{where} has no {word} pictures to train on{listed}, and a training takes both; {instead}")
    if counts["yes"] < FEWEST_DEFECTIVE:
        raise UserError(
            f"{where} has {counts['yes']} defective pictures with masks{listed}, and a training takes "
            f"{FEWEST_DEFECTIVE} at least: add some; {instead}"
        )


def _in_turn(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Normal and defective pictures in turn, in an order of the seed; what is left of the more frequent label last."""
    shuffled = random.Random(f"{seed}, order").sample(list(samples), len(samples))
    turns: Counter[str] = Counter()
    ranked = []
    for sample in shuffled:
        ranked.append((turns[sample.label], sample.label, sample))
        turns[sample.label] += 1
    return [sample for *_, sample in sorted(ranked, key=lambda one: one[:2])]


def _limited(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` pictures of each data set, in their order, labels even as far as there are both."""
    kept: set[str] = set()
    for name in {sample.benchmark for sample in samples}:
        own = _in_turn([sample for sample in samples if sample.benchmark == name], seed)
        kept.update(sample.image for sample in own[:limit])
    return [sample for sample in samples if sample.image in kept]


def _read_part(run: Run, part: str) -> list[Sample]:
    path = run.require(run.path(SOURCE, f"{part}.jsonl"), "02_data")
    samples = [Sample(**row) for row in Journal(path).rows()]
    share_depth(sample.image for sample in samples)
    return samples


# ------------------------------------------------------------------------------------------------ the hub


@dataclass(frozen=True)
class HubSettings:
    """The paper's data sets: names on the hub, or folders with copies."""

    expert_ad: str
    benchmarks: str


def _prepare_hub(run: Run) -> list[str]:
    """The parts of the paper's own data sets: records of the two stages, of which SC-GRPO's lend the dev set some."""
    names = run.profile.settings("data", HubSettings)
    limits = run.profile.settings(SOURCE, SourceSettings)
    given = {**asdict(names), **asdict(limits), "seed": run.seed}
    if (noted := _noted(run, f"{given} {_hub_versions(names)}")) is not None:
        return noted
    training, tests = (_hub_table(name) for name in (names.expert_ad, names.benchmarks))
    problems = [{"image": p.image, "reason": p.kind} for table in (training, tests) for p in table.passed_over]
    pa_sft, sc_grpo = _apart(training, tests, problems)
    if lacking := [stage for stage, samples in (("pa-sft", pa_sft), ("sc-grpo", sc_grpo)) if not samples]:
        raise UserError(f"{names.expert_ad} holds no records of {' and '.join(lacking)}: check that the copy is whole")
    dev = _in_turn(sc_grpo, run.seed)[: limits.dev_images or 0]
    kept = {sample.image for sample in dev}
    parts = {
        "pa_sft": pa_sft[: limits.pa_sft_images],
        "sc_grpo": [sample for sample in sc_grpo if sample.image not in kept][: limits.sc_grpo_images],
        "dev": dev,
        "test": _limited(tests, limits.test_images, run.seed),
    }
    sentences = [
        f"Records of {names.expert_ad}; the dev set is taken from SC-GRPO's. The test is {names.benchmarks}.",
        *_counted(parts),
    ]
    if shared := sum("same picture" in problem["reason"] for problem in problems):
        sentences.append(f"{shared} records are left out, since their pictures are in the test or in another record.")
    _write_parts(run, parts, problems, sentences, f"{given} {_hub_versions(names)}")
    return sentences


def _apart(training: Table, tests: Table, problems: list[dict[str, Any]]) -> tuple[list[Sample], list[Sample]]:
    """The samples of PA-SFT's and of SC-GRPO's records: no picture twice or in the test, under whatever name."""
    taken = {content_hash(sample.image) for sample in tests if Path(sample.image).is_file()}
    stages: list[list[Sample]] = []
    for stage in ("pa-sft", "sc-grpo"):
        stages.append([])
        for sample in {s.image: s for s in training if s.source == stage}.values():
            digest = content_hash(sample.image) if Path(sample.image).is_file() else sample.image
            if digest in taken:
                problems.append({"image": sample.image, "reason": "same picture in the test or in another record"})
            else:
                stages[-1].append(sample)
            taken.add(digest)
    return stages[0], stages[1]


def _hub_versions(names: HubSettings) -> list[str]:
    """What changes with a copy's records, or with the commit that was downloaded."""
    return [
        data_hash(sorted(Path(name).rglob("*.json"))) if Path(name).is_dir() else str(recorded_folder(name))
        for name in (names.expert_ad, names.benchmarks)
    ]


def _hub_table(name: str) -> Table:
    """The table of a local copy, paths absolute, or of the hub."""
    return read_snapshot(Path(name).absolute()) if Path(name).is_dir() else load_hub(name)
