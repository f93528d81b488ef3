"""Helper library of the course: rooms in the order in which data flows through them (docs/library.md)."""

import warnings

__version__ = "0.1.0"

# tqdm's notebook bar needs ipywidgets, which a headless run has not; the plain bar it falls back to is wanted.
warnings.filterwarnings("ignore", message="IProgress not found")
