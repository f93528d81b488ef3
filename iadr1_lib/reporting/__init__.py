"""Reporting: what runs recorded comes in; tables, the paper's claims, figures and the report page go out.

Nothing is measured here, except differences over several seeds. Begin with `results`, which reads a run, then `tables`
and `claims`; `charts` and `pictures` draw.
"""

from iadr1_lib.reporting.charts import (
    baseline_bars,
    confusion_heatmaps,
    interval_chart,
    line_chart,
    stage_bars,
    stage_differences,
    training_curves,
    value_bars,
    value_map,
)
from iadr1_lib.reporting.claims import (
    NOT_MEASURED,
    PAPER_SETS,
    Measured,
    agreement,
    beside_table_one,
    curve,
    in_short,
    measured,
    our_table,
    paper_table,
    printed_table,
)
from iadr1_lib.reporting.documents import write_readme
from iadr1_lib.reporting.page import build_page, page_of
from iadr1_lib.reporting.pictures import answer_sheet, heat_map, mark_cell, record_gallery, sample_sheet
from iadr1_lib.reporting.results import (
    COMPARISONS,
    EVALUATION,
    REPORT,
    STAGES,
    comparison_title,
    cost,
    differences,
    found_by_severity,
    mean_row,
    notebook_times,
    pooled_metrics,
    predictions,
    recorded,
    severity_of,
    shipped,
    stage_scores,
)
from iadr1_lib.reporting.studies import (
    BASELINE,
    STUDIES,
    own_results,
    shipped_study,
    study_changes,
    study_named,
    study_results,
    study_table,
)
from iadr1_lib.reporting.tables import (
    judged_benchmarks,
    predictor_table,
    result_tables,
    stage_table,
    what_they_measure,
)
