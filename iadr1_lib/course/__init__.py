"""A run comes in; the files of its stages, its executed notebooks and its metrics come out.

The notebooks and the command line call the same steps. Begin with `steps`; `batch` executes the notebooks.
"""

from iadr1_lib.course.doctor import (
    check_base,
    check_machine,
    check_notebooks,
    check_packages,
    check_python,
    check_runs_folder,
    examine,
)
from iadr1_lib.course.steps import (
    STAGE_TITLES,
    STAGES,
    benchmark_samples,
    build_expert_ad,
    build_short_records,
    draw_training_world,
    evaluation_settings,
    predict_protocol,
    predict_stage,
    stage_model,
    train_stage,
    training_families,
    training_samples,
    world_settings,
)
