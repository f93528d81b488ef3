"""Helper library of the course: one module per idea, each short enough to read in one sitting."""

import warnings

__version__ = "0.1.0"

# tqdm's notebook bar needs ipywidgets, which a headless run has not; the plain bar it falls back to is wanted.
warnings.filterwarnings("ignore", message="IProgress not found")
