"""An Expert-AD set as a folder that `datasets` loads: Parquet files with the pictures inside, and a data card.

write_parquet(built.records, folder / "pa_sft.parquet")
write_card(folder, report)
datasets.load_dataset(str(folder), "pa_sft")
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.ExifTags
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from iadr1_lib.answer import QUESTION
from iadr1_lib.data import data_set_named, open_image
from iadr1_lib.files import write_text
from iadr1_lib.records import Record
from iadr1_lib.runs import project_root

FEATURES = Features(
    {
        "image": Image(),
        "question": Value("string"),
        "answer": Value("string"),
        "label": Value("string"),
        "location": Value("string"),
        "grid": Value("int32"),
        "type": Value("string"),
        "category": Value("string"),
        "data_set": Value("string"),
    }
)
MOST_ROWS = 20  # of a table; what has more is told in a line
ROWS_AT_A_TIME = 64  # pictures that are in memory together

KNOWN_LIMITS = (
    "The paper does not say where the pictures of Expert-AD come from, who wrote its reasoning or how it was checked; "
    "this set is a construction of the same shape, not the authors' set.",
    "Place and type are taken from masks and from the data set's own names. Where those are wrong, the records are "
    "consistently wrong.",
    "The place of a defect is one cell of a grid, that of its largest patch; a long defect reaches into others.",
    "Normal pictures are normal because their data set files them so.",
)
LIMITS_OF_RULES = (
    "The rule teacher speaks of what can be measured in grey levels: place, size, form, contrast, number of spots. It "
    "does not see colour, and it says of a type what the type means in general, not what is special in the picture.",
)


def write_parquet(records: Iterable[Record], path: Path) -> Path:
    """Write records with their pictures' files inside; `answer` has the tags, and reasoning if there is any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, FEATURES.arrow_schema) as writer:
        rows: list[dict[str, Any]] = []
        for record in records:
            rows.append(_row(record))
            if len(rows) == ROWS_AT_A_TIME:
                writer.write_table(_table(rows))
                rows = []
        if rows:
            writer.write_table(_table(rows))
    temporary.replace(path)
    return path


def _row(record: Record) -> dict[str, Any]:
    return {
        "image": _picture(record.image),
        "question": QUESTION,
        "answer": record.answer if record.reasoning else record.solution,
        "label": record.label,
        "location": record.location,
        "grid": record.grid,
        "type": record.type,
        "category": record.category,
        "data_set": record.benchmark,
    }


def _picture(path: str) -> dict[str, Any]:
    """The file as it is, or, where other programs would show other pixels than `open_image`, those pixels as PNG."""
    with PIL.Image.open(path) as picture:
        plain = (
            picture.mode in ("L", "RGB")
            and not picture.has_transparency_data
            and not picture.getexif().get(PIL.ExifTags.Base.Orientation)
        )
    if plain:
        return {"bytes": Path(path).read_bytes(), "path": Path(path).name}
    content = BytesIO()
    open_image(path).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{Path(path).stem}.png"}


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)


@cache
def _licences() -> dict[str, tuple[str, str]]:
    with (project_root() / "data" / "licences.csv").open(newline="", encoding="utf-8") as file:
        return {row["data_set"]: (row["licence"], row["see"]) for row in csv.DictReader(file)}


def _licence(data_set: str) -> str:
    licence, see = _licences().get(data_set_named(data_set) or "", ("not known: look it up before you share", ""))
    return f"{licence} ({see})" if see else licence


def write_card(folder: Path, report: dict[str, Any]) -> Path:
    """README.md of a set's folder, made from its report: counts, sources, licences, teacher, rejections, limits."""
    grpo = report["SC-GRPO"]
    sources = sorted({*report["data set"], *grpo["data set"]})
    lines = [
        "---",
        *_configs(folder),
        "task_categories:",
        "- image-text-to-text",
        "---",
        "",
        "# Expert-AD, built by iadr1",
        "",
        f"{report['records']} pictures with worked answers for PA-SFT and {grpo['questions']} other pictures with "
        "solutions for SC-GRPO. Each is asked:",
        "",
        f"> {QUESTION}",
        "",
        "## Sources and licences",
        "",
        *_markdown(
            ("data set", "PA-SFT", "SC-GRPO", "licence of the pictures"),
            [(s, report["data set"].get(s, 0), grpo["data set"].get(s, 0), _licence(s)) for s in sources],
        ),
        "",
        "The records name pictures of these data sets; who shares them shares the pictures under these terms.",
        "",
        "## What is in it",
        "",
        *_tally("label", report),
        *_tally("type", report),
        *_tally("location", report),
        *_tally("category", report),
        f"Reasoning has {report['sentences of reasoning, mean']} sentences and {report['words of reasoning, mean']} "
        f"words in the mean; {report['different texts']} of {report['records']} texts are different.",
        "",
        "## Who wrote it, and what was rejected",
        "",
        f"Made with: {_counts(report['made with']) or 'not recorded'}.",
        "",
        f"Teacher: {report['teacher']}. Records by the number of drafts it took: "
        f"{_counts(report['records by tries']) or 'none'}. Rejected for good: {report['rejected']} "
        f"({_percent(report['rejected'], report['rejected'] + report['records'])}), listed in rejected.jsonl.",
        "",
        *_markdown(("rule", "drafts rejected"), list(report["rejections by rule, retries included"].items())),
        "",
        f"Turned away before: {_counts(report['turned away']) or 'none'}. "
        f"Left over: {_counts(report['spare']) or 'none'}.",
        "",
        "## Known limits",
        "",
        *(f"- {limit}" for limit in (*KNOWN_LIMITS, *(LIMITS_OF_RULES if "rule" in report["teacher"] else ()))),
        "",
    ]
    return write_text(folder / "README.md", "\n".join(lines))


def _configs(folder: Path) -> list[str]:
    """What `datasets` is to load: the Parquet files that are there."""
    names = [name for name in ("pa_sft", "sc_grpo") if (folder / f"{name}.parquet").exists()]
    entries = [f"- config_name: {name}\n  data_files: {name}.parquet" for name in names]
    return ["configs:", *entries] if entries else []


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return ["None."]
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _tally(name: str, report: dict[str, Any]) -> list[str]:
    grpo = report["SC-GRPO"][name]
    keys = list(dict.fromkeys([*report[name], *grpo]))
    if len(keys) > MOST_ROWS:
        sizes = [f"{min(counts.values())} to {max(counts.values())}" for counts in (report[name], grpo) if counts]
        return [f"{len(keys)} values of {name}, with {' and '.join(sizes)} pictures each.", ""]
    return [*_markdown((name, "PA-SFT", "SC-GRPO"), [(k, report[name].get(k, 0), grpo.get(k, 0)) for k in keys]), ""]


def _counts(tally: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in tally.items())


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
