"""The command `iadr1`: one file for each group of commands; each parses, calls a room and prints.

Begin at `main`, which knows the exit statuses.
"""

from iadr1_lib.cli.app import main
