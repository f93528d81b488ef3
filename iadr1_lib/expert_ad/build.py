"""Expert-AD: from samples with masks to chain-of-thought records, checked and exported in the released formats.

The paper (section "Expert-AD") lets the reasoning go through three layers: *perception* (scan, locate), *knowledge*
(appearance, surface, structure, hence a type) and *decision* (anomaly or not, how severe). It does not say who wrote
the text or how it was checked. Here a teacher (`teachers`, `remote.teacher`) writes it and `verification` checks it;
this module samples the pictures, builds the records and writes the set.

    drawn = draw_sets(samples, seed=0)
    built = build_records(drawn.pa_sft, RuleTeacher(0))
    export(built, [labelled(s) for s in drawn.sc_grpo], Path("expert_ad"), seed=0)
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from iadr1_lib.answer import DIRECT, GRID
from iadr1_lib.data import content_hash, depth_of, image_size, known_depths, mask_files, sample_problems, take_depths
from iadr1_lib.errors import UserError
from iadr1_lib.expert_ad.facts import facts_of
from iadr1_lib.expert_ad.teachers import Budget, Task, Teacher
from iadr1_lib.expert_ad.verification import NEAR_DUPLICATE, RULES, Verifier
from iadr1_lib.files import Journal, json_lines, write_json, write_text
from iadr1_lib.records import (
    IMAGE_MARK,
    KEYS,
    Record,
    Sample,
    answer_only,
    one_shot_row,
    pa_sft_row,
    sc_grpo_row,
    stage_of,
)

PAPER_SIZES = (2900, 3000)  # PA-SFT with reasoning, SC-GRPO without (paper, section "Expert-AD")
SHARES = (20, 40, 60, 80)  # percent of PA-SFT's records in the subsets (released code)
CHUNK = 256  # samples that are measured and written together
UNUSABLE = {"turned picture", "unreadable", "mask size", "empty mask", "mask marks most", "defect without mask"}
SMALLEST_SIDE = 16  # pixels: below it nothing can be measured or seen
TOO_LONG = "too long for the model"  # not a rule of verification: it depends on the model that is to learn
NO_DRAFT = "no draft"  # not a rule: the teacher had no answer; not kept, so that the next run asks again

# ---------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Drawn:
    """Samples of the two stages, those left over, and why the others were turned away (one row per picture)."""

    pa_sft: list[Sample] = field(default_factory=list)
    sc_grpo: list[Sample] = field(default_factory=list)
    spare: list[Sample] = field(default_factory=list)
    turned_away: list[dict[str, Any]] = field(default_factory=list)


def draw_sets(
    samples: Sequence[Sample],
    seed: int,
    sizes: tuple[int, int] | None = None,
    tests: Iterable[Sample] = (),
    workers: int = 1,
) -> Drawn:
    """Sample the pictures of PA-SFT and SC-GRPO: half normal and half defective, categories even, types as they come.

    No picture is in both, and none has the content of one of `tests` or of another picture. A picture that cannot be
    read, and a defective one without a mask of its size that marks something and not most, are turned away.

    Args:
        sizes: pictures of PA-SFT and SC-GRPO; by default the paper's, or as many as there are in its ratio.
        workers: processes that look at the pictures.

    Raises:
        UserError: there are no normal or no defective pictures, or fewer than `sizes` asks for.
    """
    usable, turned_away = _usable(samples, {content_hash(sample.image) for sample in tests}, workers)
    rng = random.Random(seed)
    normal, defective = (_evenly([s for s in usable if s.label == label], rng) for label in ("no", "yes"))
    fewest = min(len(normal), len(defective))
    if fewest < 2:
        raise UserError(
            f"Expert-AD needs two normal and two defective pictures with masks at least; there are {len(normal)} and "
            f"{len(defective)}, and {len(turned_away)} were turned away ({', '.join(_reasons(turned_away))}): add some"
        )
    if sizes is None:
        whole = min(2 * fewest, sum(PAPER_SIZES))
        first = max(2, round(whole * PAPER_SIZES[0] / sum(PAPER_SIZES) / 2) * 2)
        sizes = (first, whole - first)
    needed = sum(-(-size // 2) for size in sizes)
    if needed > fewest:
        raise UserError(
            f"{sizes} pictures need {needed} of each label, and there are {fewest}: ask for fewer, or add some"
        )
    no, yes = iter(normal), iter(defective)
    sets = [_in_turn(islice(no, size // 2), islice(yes, -(-size // 2))) for size in sizes]
    return Drawn(sets[0], sets[1], [*no, *yes], turned_away)


def _usable(samples: Sequence[Sample], tests: set[str], workers: int) -> tuple[list[Sample], list[dict[str, Any]]]:
    """The samples that can be used, and a row with the reason for each that cannot."""
    digests = [content_hash(sample.image) if Path(sample.image).is_file() else sample.image for sample in samples]
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for digest, sample in zip(digests, samples, strict=True):
        labels[digest].add(sample.label)
    usable: dict[str, Sample] = {}
    turned_away = []
    for sample, digest, reason in zip(samples, digests, _map(_fault, samples, workers), strict=True):
        if digest in tests:
            reason = "in a test set"
        elif len(labels[digest]) > 1:
            reason = "both normal and defective"
        elif digest in usable:
            reason = f"same content as {usable[digest].image}"
        if reason:
            turned_away.append({"image": sample.image, "label": sample.label, "reason": reason})
        else:
            usable[digest] = sample
    return list(usable.values()), turned_away


def _fault(sample: Sample) -> str | None:
    """The kind of problem (`KINDS` in data/table.py) for which a sample cannot be used, or None."""
    fault = next((problem.kind for problem in sample_problems(sample) if problem.kind in UNUSABLE), None)
    return fault or ("too small" if min(image_size(sample.image)) < SMALLEST_SIDE else None)


def _map(work: Callable[[Sample], Any], samples: Sequence[Sample], workers: int) -> Iterator[Any]:
    """`work` done on each sample, in order, by several processes if there is enough for them."""
    if workers == 1 or len(samples) < 2 * workers:
        yield from map(work, samples)
        return
    with ProcessPoolExecutor(workers, initializer=take_depths, initargs=(known_depths(),)) as pool:
        yield from pool.map(work, samples, chunksize=16)


def _evenly(samples: list[Sample], rng: random.Random) -> list[Sample]:
    """All samples in a random order that takes one of each category in turn, for as long as each has some."""
    by_category: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_category[sample.benchmark, sample.category].append(sample)
    for members in by_category.values():
        rng.shuffle(members)
    return _in_turn(*by_category.values())


def _in_turn(*groups: Iterable[Sample]) -> list[Sample]:
    return [sample for turn in zip_longest(*groups) for sample in turn if sample]


# ---------------------------------------------------------------------------------------------- records


@dataclass
class Built:
    """Records that passed, rows of those that did not, rejections by rule (retries included), tries per record."""

    records: list[Record] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tries: Counter[int] = field(default_factory=Counter)
    teacher: str = ""


def build_records(
    samples: Sequence[Sample],
    teacher: Teacher,
    *,
    tries: int = 3,
    repeats: bool = False,
    grid: int = GRID,
    budget: Budget | None = None,
    workers: int = 1,
    journal: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Built:
    """A record for each sample, written by the teacher and checked; one that fails is written again with the reasons.

    Args:
        tries: drafts per picture, the first included.
        repeats: wordings may come again (the short style has a few dozen).
        budget: longest answer that the model to be trained can write; a longer one is rejected like a false one.
        workers: processes that measure pictures.
        journal: a JSON Lines file that keeps each decision as soon as it is made, so that a stopped run goes on.
        progress: called with the number of pictures done since its last call.

    Returns:
        Records in the samples' order; every other sample is in `rejected`, with rules and sentences.

    Raises:
        UserError: as `facts_of`, which `draw_sets` spares; or the journal was begun with other settings.
    """
    kept = Journal(journal) if journal else None
    settings = {"teacher": teacher.key, "tries": tries, "grid": grid, "repeats": repeats, "format": 2}
    settings |= {"tokens": budget.tokens} if budget else {}
    earlier = _earlier_decisions(kept, settings) if kept else {}
    verifier, rows = Verifier(repeats), []
    for chunk in (samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)):
        done = {s.image: row for s in chunk if (row := earlier.get(s.image)) and row["of"] == _identity(s)}
        for row in done.values():
            if row["record"]:
                verifier.accept(Record(**row["record"]))
        progress(len(done))
        for row in _decide([s for s in chunk if s.image not in done], teacher, verifier, tries, grid, workers, budget):
            done[row["image"]] = row
            if kept and NO_DRAFT not in row["failed"]:
                kept.append(row)
            progress(1)
        rows += [done[sample.image] for sample in chunk]
    counts = Counter(dict.fromkeys([*RULES, NEAR_DUPLICATE], 0))
    counts.update(rule for row in rows for rule in row["refused"])
    return Built(
        [Record(**row["record"]) for row in rows if row["record"]],
        [{k: row[k] for k in ("image", "label", "category", "reasoning", "failed")} for row in rows if row["failed"]],
        counts,
        Counter(row["tries"] for row in rows if row["record"]),
        teacher.name,
    )


def _earlier_decisions(journal: Journal, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of a journal by image; a new journal is begun with the settings. Raises UserError for another file."""
    first, *rows = journal.rows() or [None]
    has_no_decision = not rows and (first is None or isinstance(first, dict) and first.keys() == settings.keys())
    if has_no_decision:
        journal.replace([settings])
    elif first != settings or not all(isinstance(row, dict) and "image" in row for row in rows):
        raise UserError(f"{journal.path} was begun with other settings ({first}): name another --out, or remove it")
    return {row["image"]: row for row in rows}


def _decide(
    samples: list[Sample],
    teacher: Teacher,
    verifier: Verifier,
    tries: int,
    grid: int,
    workers: int,
    budget: Budget | None,
) -> Iterator[dict[str, Any]]:
    """One row per sample as soon as it is settled: the record, or the last draft and what it failed.

    `refused` has the failed rules of all drafts. A teacher that has no draft is not asked again in this run.
    """
    rows: dict[str, dict[str, Any]] = {}
    tasks = []
    for sample, facts in zip(samples, _map(partial(facts_of, grid=grid), samples, workers), strict=True):
        known = {"image": sample.image, "label": sample.label, "category": sample.category, "of": _identity(sample)}
        rows[sample.image] = known | {"reasoning": "", "failed": {}, "refused": [], "tries": 0, "record": None}
        tasks.append(Task(sample, facts))
    for attempt in range(1, tries + 1):
        again = []
        for task, draft in zip(tasks, teacher.write(tasks), strict=True):
            row = rows[task.sample.image]
            if draft.reasoning is None:
                row["failed"] |= {NO_DRAFT: draft.failure}  # beside what the last draft failed
                row["refused"].append(NO_DRAFT)
                yield row
                continue
            s, facts = task.sample, task.facts
            labels = (s.label, facts.location, facts.defect_type, s.category)
            record = Record(s.image, *labels, draft.reasoning, s.benchmark, grid, depth_of(s.image))
            failed = verifier.examine(record, facts)
            if budget and (excess := budget.excess(record.answer)):
                failed[TOO_LONG] = excess
            row |= {"reasoning": record.reasoning, "failed": failed, "tries": attempt}
            row["refused"] += failed
            if not failed:
                row["record"] = asdict(record)
                verifier.accept(record)
            elif attempt < tries:
                again.append(replace(task, attempt=attempt, reasons=tuple(failed.values())))
                continue
            yield row
        tasks = again


def _identity(sample: Sample) -> str:
    """Changes with the picture, its mask and its labels: a journal's row holds for these only."""
    paths = [Path(sample.image), *(mask_files(sample.mask) if sample.mask else [])]
    return " ".join([*(content_hash(path) for path in paths if path.is_file()), sample.label, str(sample.type)])


# ---------------------------------------------------------------------------------------------- export


def report_of(
    built: Built, sc_grpo: Sequence[Record] = (), drawn: Drawn | None = None, made_with: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Counts of records by label, type, place and category, rejections by rule, and what the set was made with."""
    drawn, records = drawn or Drawn(), built.records
    texts = pd.Series([r.reasoning for r in records], dtype=str)
    words, sentences = texts.str.count(r"\S+"), texts.str.count(r"[.!?](?: |\Z)")
    return {
        "teacher": built.teacher,
        "made with": made_with or {},
        "records": len(records),
        "rejected": len(built.rejected),
        "rejections by rule, retries included": dict(built.counts),
        "records by tries": {str(n): count for n, count in sorted(built.tries.items())},
        **_tallies(records),
        "words of reasoning, mean": round(float(words.mean()), 1) if records else 0.0,
        "sentences of reasoning, mean": round(float(sentences.mean()), 1) if records else 0.0,
        "different texts": texts.nunique(),
        "grid": next((r.grid for r in (*records, *sc_grpo)), GRID),
        "SC-GRPO": {"questions": len(sc_grpo), **_tallies(sc_grpo)},
        "spare": dict(Counter(sample.label for sample in drawn.spare)),
        "turned away": _reasons(drawn.turned_away),
    }


def _tallies(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Records by each attribute, the most frequent value first; labels in the records' order."""
    tallies: dict[str, dict[str, int]] = {"label": dict(Counter(str(r.label) for r in records))}
    for name in ("type", "location", "category", "benchmark"):
        counts = Counter(value for r in records if (value := getattr(r, name)))
        tallies["data set" if name == "benchmark" else name] = dict(counts.most_common())
    return tallies


def _reasons(turned_away: Iterable[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(row["reason"].split(" as ")[0] for row in turned_away))


def tally_table(report: dict[str, Any], name: str) -> pd.DataFrame:
    """Records of PA-SFT and questions of SC-GRPO by label, type, location or category, from a report."""
    table = pd.DataFrame({"PA-SFT": report[name], "SC-GRPO": report["SC-GRPO"][name]})
    return table.fillna(0).astype(int).rename_axis(name).reset_index()


def rejections_table(report: dict[str, Any]) -> pd.DataFrame:
    """Drafts that each rule rejected, from a report."""
    counts = report["rejections by rule, retries included"].items()
    return pd.DataFrame(list(counts), columns=["rule", "drafts rejected"])


def export(
    built: Built,
    sc_grpo: Sequence[Record],
    folder: Path,
    *,
    seed: int = 0,
    drawn: Drawn | None = None,
    made_with: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the set in the released formats, the variants of the ablations, the rejected and the report.

        pa_sft.json, sc_grpo.json          questions with worked answers; questions with solutions
        variants/pa_sft_answer_only.json   the same pictures without reasoning (paper, Table 2)
        variants/pa_sft_one_shot.json      a normal picture of the same category before each
        variants/pa_sft_20.json … _80      nested subsets, labels even
        rejected.jsonl, report.json        what failed and why; counts

    Returns:
        The report.

    Raises:
        UserError: a picture is in both sets.
    """
    records = built.records
    if both := {r.image for r in records} & {r.image for r in sc_grpo}:
        raise UserError(f"{len(both)} images are in both PA-SFT's and SC-GRPO's set, such as {min(both)}: split again")
    report = report_of(built, sc_grpo, drawn, made_with)
    files = {
        "pa_sft": [pa_sft_row(r) for r in records],
        "sc_grpo": [sc_grpo_row(r, i) for i, r in enumerate(sc_grpo)],
        "variants/pa_sft_answer_only": [pa_sft_row(answer_only(r)) for r in records],
        "variants/pa_sft_one_shot": one_shot_rows(records, seed, drawn.spare if drawn else ()),
        **{f"variants/pa_sft_{share}": [pa_sft_row(r) for r in subset(records, share, seed)] for share in SHARES},
        "report": report,
    }
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    write_rejected(built, drawn, folder)
    return report


def write_rejected(built: Built, drawn: Drawn | None, folder: Path) -> Path:
    """Write rejected.jsonl: each picture without a record, and why."""
    turned_away = [
        {"image": row["image"], "label": row["label"], "failed": {"drawing": row["reason"]}}
        for row in (drawn.turned_away if drawn else [])
    ]
    return write_text(folder / "rejected.jsonl", json_lines([*built.rejected, *turned_away]))


def one_shot_rows(records: Sequence[Record], seed: int, spare: Sequence[Sample] = ()) -> list[dict[str, Any]]:
    """Records with a normal picture of the same category before them, chosen by the seed.

    From the spare pictures where there are any of the category, else from the set's own; never the picture itself. A
    record for which there is none is left out.
    """
    rng = random.Random(seed)
    unused, own = defaultdict[tuple[str, str], list[str]](list), defaultdict[tuple[str, str], list[str]](list)
    for references, pictures in ((unused, spare), (own, records)):
        for picture in pictures:
            if picture.label == "no":
                references[picture.benchmark, picture.category].append(picture.image)
    rows = []
    for record in records:
        kind = (record.benchmark, record.category)
        if others := [image for image in unused[kind] or own[kind] if image != record.image]:
            rows.append(one_shot_row(record, rng.choice(others)))
    return rows


def some_one_shot(
    rows: Sequence[dict[str, Any]], references: Mapping[str, str], share: float, seed: int
) -> list[dict[str, Any]]:
    """Rows of either stage, a random `share` of them with a reference before the picture.

    `references` says which, image -> reference, paths as in the rows; rows of other pictures stay as they are.
    """
    rng, shown = random.Random(seed), []
    for row in rows:
        key = KEYS[stage_of(row) or "pa_sft"][0]
        reference = references.get(row[key])
        if rng.random() >= share or reference is None:
            shown.append(row)
            continue
        shown.append(row | {key: [reference, row[key]]})
        if "messages" in row:
            question, *rest = row["messages"]
            shown[-1]["messages"] = [question | {"content": f"{IMAGE_MARK}\n{question['content']}"}, *rest]
    return shown


def some_answer_only(rows: Sequence[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """Rows of PA-SFT, a random `share` of them asked for the tags alone.

    So P(Yes) can be read in one pass (`evaluation.prediction.answer_only`). The words of the question keep the two
    kinds of answer apart: asked without them, a model that had seen both would drop the reasoning in SC-GRPO.
    """
    rng, shown = random.Random(seed + 1), []
    for row in rows:
        *question, answer = row["messages"]
        if rng.random() < share:
            question = [*question[:-1], question[-1] | {"content": f"{question[-1]['content']} {DIRECT}"}]
            tags = answer["content"].partition("</think>")[2]
            row = row | {"messages": [*question, answer | {"content": f"<think></think>{tags}"}]}
        shown.append(row)
    return shown


def subset(records: Sequence[Record], share: int, seed: int) -> list[Record]:
    """`share` percent of the records of each label, in their order; the smaller shares are within the larger ones."""
    rng = random.Random(seed)
    chosen: set[str] = set()
    for label in ("no", "yes"):
        images = [r.image for r in records if r.label == label]
        rng.shuffle(images)
        chosen.update(images[: round(len(images) * share / 100)])
    return [r for r in records if r.image in chosen]
