"""A run comes in; the files of its stages, its executed notebooks and its metrics come out.

The notebooks and the command line call the same steps. `sources` gives the pictures, `steps` what is made of them;
`batch` executes the notebooks.
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
from iadr1_lib.course.exercises import answered
from iadr1_lib.course.own_pictures import enough_masks, set_apart, write_copies, write_drawn_defects
from iadr1_lib.course.sources import (
    benchmark_samples,
    benchmark_table,
    draw_training_world,
    drawn_examples,
    prepare,
    training_families,
    training_samples,
    world_settings,
)
from iadr1_lib.course.steps import (
    STAGE_TITLES,
    STAGES,
    build_expert_ad,
    evaluation_settings,
    model_settings,
    predict_protocol,
    predict_stage,
    stage_model,
    token_budget,
    train_stage,
    write_records,
)
