"""What public sets call their folders of normal pictures, of defective ones, and of masks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

Meaning = Literal["good", "bad", "masks"]
# Case and whether "_", "-" or a blank stands between words do not count. "bad" are names that say only that; a kind of
# defect may have any other name.
_NAMES: dict[Meaning, str] = {
    "good": "good ok okay normal io free clean flawless intact pass passed defect_free defectfree anomaly_free"
    " no_defect no_defects no_anomaly non_defect non_defective nondefective not_defective non_anomalous",
    "bad": "bad ko ng nok nio not_ok not_good no_good def defect defects defective anomaly anomalies anomalous abnormal"
    " fail failed faulty reject rejected",
    "masks": "mask masks label labels ground_truth ground_truths groundtruth gt gts annotation annotations segmentation"
    " segmentations seg segs anomaly_mask anomaly_masks defect_mask defect_masks pixel_labels",
}
_MEANING = {name: meaning for meaning, names in _NAMES.items() for name in names.split()}
GOOD = "good"  # MVTec-AD's folder name of normal pictures
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def says(name: str) -> Meaning | None:
    """Whether a folder's name says that its pictures are "good", are "bad" (and no more), or are "masks".

    A number in it says nothing more: "good_2", "1_bad".
    """
    plain = re.sub(r"[\W_]+", "_", name.casefold())
    return _MEANING.get(plain) or _MEANING.get(re.sub(r"[\d_]+", "_", plain).strip("_"))


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends as a picture's does."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def stem_of_picture(mask: Path) -> str:
    """The stem of the picture that a mask is of: 7 of 7.png, 7_mask.png, 7_label.bmp, and of a folder 7."""
    name = mask.stem if is_picture_name(mask.name) else mask.name
    stem, _, word = name.rpartition("_")
    return stem if stem and says(word) == "masks" else name
