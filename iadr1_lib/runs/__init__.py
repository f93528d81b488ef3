"""Runs: a profile (one YAML file) and a seed come in; a run folder comes out, with metrics and their provenance.

Nothing here loads torch, except to seed it or to name a GPU. Begin with `Run` in run.py.
"""

from iadr1_lib.runs.choices import COMMAND_LINE, Choices, noted_run, parse_settings, read_choices, write_choices
from iadr1_lib.runs.metrics import notebook_records, read_metrics_file, record_metrics
from iadr1_lib.runs.places import base_model_dir, model_path, project_root, runs_folder
from iadr1_lib.runs.profiles import Profile, load_profile, profile_names
from iadr1_lib.runs.environment import (
    RUN_KEYS,
    commit,
    data_hash,
    environment_banner,
    hardware,
    pooled_provenance,
    provenance,
    stamp,
)
from iadr1_lib.runs.run import MODEL, Run, require, seed_everything
