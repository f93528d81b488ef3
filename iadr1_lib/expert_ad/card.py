"""An Expert-AD set as a folder that `datasets` loads: Parquet files with the pictures inside, and a data card.

write_parquet(built.records, folder / "pa_sft.parquet")
write_card(folder, report)
datasets.load_dataset(str(folder), "pa_sft")
"""

from __future__ import annotations

from collections.abc import Iterable
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
from iadr1_lib.expert_ad.build import rejections_table, tally_table
from iadr1_lib.files import atomic, write_text
from iadr1_lib.records import Record
from iadr1_lib.runs import project_root

_COLUMNS = ("question", "answer", "label", "location", "grid", "type", "category", "data_set")
FEATURES = Features({"image": Image(), **{c: Value("int32" if c == "grid" else "string") for c in _COLUMNS}})
ROWS_AT_A_TIME = 64  # pictures that are in memory together


def write_parquet(records: Iterable[Record], path: Path) -> Path:
    """Write records with their pictures' files inside; `answer` has the tags, and reasoning if there is any."""
    schema, rest = FEATURES.arrow_schema, iter(records)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while rows := [_row(record) for record in islice(rest, ROWS_AT_A_TIME)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return path


def _row(record: Record) -> dict[str, Any]:
    answer = record.answer if record.reasoning else record.solution
    row = {"image": _picture(record.image), "question": QUESTION, "answer": answer, "data_set": record.benchmark}
    return row | {name: getattr(record, name) for name in ("label", "location", "grid", "type", "category")}


def _picture(path: str) -> dict[str, Any]:
    """The file as it is, or, where other programs would show other pixels than `open_image`, those pixels as PNG."""
    with PIL.Image.open(path) as picture:
        turned = picture.getexif().get(PIL.ExifTags.Base.Orientation)
        plain = picture.mode in ("L", "RGB") and not picture.has_transparency_data and not turned
    if plain:
        return {"bytes": Path(path).read_bytes(), "path": Path(path).name}
    content = BytesIO()
    open_image(path).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{Path(path).stem}.png"}


def licence_of(data_set: str) -> str:
    """Licence of a data set's pictures and where to read it, from data/licences.csv."""
    file = project_root() / "data" / "licences.csv"
    licences = pd.read_csv(file, index_col="data_set", dtype=str, keep_default_na=False)
    name = data_set_named(data_set)
    if name is None or name not in licences.index:
        return "not known: look it up before you share"
    licence, see = (str(licences.loc[name, column]) for column in ("licence", "see"))
    return f"{licence} ({see})" if see else licence


def write_card(folder: Path, report: dict[str, Any]) -> Path:
    """Write README.md of a set's folder from its report: counts, sources, licences, teacher, rejections, limits.

    card.md is the text; its {words} are keys of the report and of what is put together here.
    """
    files = [name for name in ("pa_sft", "sc_grpo") if (folder / f"{name}.parquet").exists()]
    configs = [f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in files]
    sources = tally_table(report, "data set").sort_values("data set")
    sources["licence of the pictures"] = sources["data set"].map(licence_of)
    tallies = [_markdown(tally_table(report, name)) for name in ("label", "type", "location", "category")]
    pictures = report["rejected"] + report["records"]
    words = report | {
        "configs": "".join(["configs:\n", *configs] if configs else []),
        "question": QUESTION,
        "sources": _markdown(sources),
        "tallies": "\n\n".join(tallies),
        "share": f"{100 * report['rejected'] / max(pictures, 1):.1f} %",
        "rules": _markdown(rejections_table(report)),
    }
    nothing = {"made with": "not recorded", "records by tries": "none", "turned away": "none", "spare": "none"}
    for name, text in nothing.items():
        words[name] = ", ".join(f"{key}: {count}" for key, count in report[name].items()) or text
    text = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return write_text(folder / "README.md", text.format_map(words))


def _markdown(table: pd.DataFrame) -> str:
    rows = [[str(name) for name in table], ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
