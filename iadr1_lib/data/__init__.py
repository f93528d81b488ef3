"""Pictures and masks in, one table of samples out.

A folder in one of LAYOUTS, an index file or a data set of the hub comes in; a `Table` of `Sample` goes out, with what
could not be read listed beside it. Begin with `load_samples` in `reading`; `check_health` and `leakage` say whether a
table may be used.
"""

from iadr1_lib.data.checks import (
    check_health,
    health_table,
    leakage,
    missing_label,
    require_present,
    sample_problems,
    without_place,
)
from iadr1_lib.data.duplicates import THRESHOLD, likeness, near_duplicates
from iadr1_lib.data.folders import list_pictures, says
from iadr1_lib.data.hub import (
    BENCHMARKS,
    EXPERT_AD,
    MODEL_FILES,
    SIX,
    Kind,
    download_once,
    hub_home,
    load_hub,
    paper_benchmarks,
    read_snapshot,
    recorded_folder,
    released_records,
)
from iadr1_lib.data.images import (
    content_hash,
    depth_of,
    image_size,
    known_depths,
    open_image,
    share_depth,
    shrink,
    take_depths,
    to_rgb,
)
from iadr1_lib.data.kolektor import cut_kolektor
from iadr1_lib.data.masks import mask_files, read_mask, says_where
from iadr1_lib.data.reading import load_mvtec, load_samples
from iadr1_lib.data.rows import checked_rows, labelled, pictures_of
from iadr1_lib.data.splitting import Split, divide, split_samples
from iadr1_lib.data.table import REFERENCE_KINDS, Problem, Table, Templates, counts, samples_table
from iadr1_lib.data.type_names import category_of, data_set_named, unmapped
