"""An Expert-AD set as a folder that `datasets` loads: Parquet files with the pictures inside, and a data card.

write_parquet(built.records, folder / "pa_sft.parquet")
write_card(folder, report)
datasets.load_dataset(str(folder), "pa_sft")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
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

_COLUMNS = ("question", "answer", "label", "location", "grid", "type", "category", "data_set")
FEATURES = Features({"image": Image(), **{c: Value("int32" if c == "grid" else "string") for c in _COLUMNS}})
MOST_ROWS = 20  # of a table; what has more is told in a line
ROWS_AT_A_TIME = 64  # pictures that are in memory together

LIMITS_OF_RULES = (
    "- The rule teacher speaks of what can be measured in grey levels: place, size, form, contrast, number of spots. "
    "It does not see colour, and "
    "it says of a type what the type means in general, not what is special in the picture.\n"
)


def write_parquet(records: Iterable[Record], path: Path) -> Path:
    """Write records with their pictures' files inside; `answer` has the tags, and reasoning if there is any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, schema, rest = path.with_suffix(".tmp"), FEATURES.arrow_schema, iter(records)
    with pq.ParquetWriter(temporary, schema) as writer:
        while rows := [_row(record) for record in islice(rest, ROWS_AT_A_TIME)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
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


@cache
def _licences() -> pd.DataFrame:
    return pd.read_csv(project_root() / "data" / "licences.csv", index_col="data_set", dtype=str, keep_default_na=False)


def _licence(data_set: str) -> str:
    name = data_set_named(data_set)
    if name is None or name not in _licences().index:
        return "not known: look it up before you share"
    licence, see = map(str, _licences().loc[name, ["licence", "see"]])
    return f"{licence} ({see})" if see else licence


def write_card(folder: Path, report: dict[str, Any]) -> Path:
    """Write README.md of a set's folder from its report: counts, sources, licences, teacher, rejections, limits."""
    first, second = report["data set"], report["SC-GRPO"]["data set"]
    sources = [(s, first.get(s, 0), second.get(s, 0), _licence(s)) for s in sorted({*first, *second})]
    files = [name for name in ("pa_sft", "sc_grpo") if (folder / f"{name}.parquet").exists()]
    configs = [f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in files]
    written, rejected = report["records"], report["rejected"]
    text = (
        Path(__file__)
        .with_name("card.md")
        .read_text(encoding="utf-8")
        .format(
            configs="".join(["configs:\n", *configs] if configs else []),
            question=QUESTION,
            records=written,
            questions=report["SC-GRPO"]["questions"],
            sources=_markdown(("data set", "PA-SFT", "SC-GRPO", "licence of the pictures"), sources),
            tallies="".join(_tally(name, report) for name in ("label", "type", "location", "category")),
            sentences=report["sentences of reasoning, mean"],
            words=report["words of reasoning, mean"],
            texts=report["different texts"],
            made_with=_counts(report["made with"]) or "not recorded",
            teacher=report["teacher"],
            tries=_counts(report["records by tries"]) or "none",
            rejected=rejected,
            share=f"{100 * rejected / (rejected + written):.1f} %" if rejected + written else "0 %",
            rules=_markdown(("rule", "drafts rejected"), list(report["rejections by rule, retries included"].items())),
            turned_away=_counts(report["turned away"]) or "none",
            spare=_counts(report["spare"]) or "none",
        )
    )
    return write_text(folder / "README.md", text + (LIMITS_OF_RULES if "rule" in report["teacher"] else ""))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
    return "\n".join(lines) if rows else "None."


def _tally(name: str, report: dict[str, Any]) -> str:
    """Records of both stages by one attribute, as a paragraph."""
    first, second = report[name], report["SC-GRPO"][name]
    keys = list(dict.fromkeys([*first, *second]))
    if len(keys) <= MOST_ROWS:
        rows = [(key, first.get(key, 0), second.get(key, 0)) for key in keys]
        return _markdown((name, "PA-SFT", "SC-GRPO"), rows) + "\n\n"
    sizes = " and ".join(f"{min(counts.values())} to {max(counts.values())}" for counts in (first, second) if counts)
    return f"{len(keys)} values of {name}, with {sizes} pictures each.\n\n"


def _counts(tally: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in tally.items())
