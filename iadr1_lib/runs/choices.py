"""What a run does otherwise than its profile says: pictures of one's own, another model, single settings.

They lie in the run folder as run.json, so that every notebook, command and process of the run makes the same choices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from iadr1_lib.errors import UserError, WrongUse, one_line
from iadr1_lib.files import read_json, write_json
from iadr1_lib.runs.profiles import Loader

FILE = "run.json"
COMMAND_LINE = "command line"  # the source of a setting that was given there


@dataclass(frozen=True)
class Choices:
    """The choices of one run.

    Attributes:
        data: data sets to train on, split into training, dev and test; none: what the profile says.
        test: data sets to test on, in place of a part of `data`.
        hold_out: categories of `data` that are kept for the test; none: the seed chooses.
        settings: "section.key" -> a value in place of the profile's.
    """

    data: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    hold_out: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def with_settings(self, given: Mapping[str, Any]) -> Choices:
        """The same choices, and these settings before all."""
        return Choices(self.data, self.test, self.hold_out, {**self.settings, **given})


def read_choices(folder: Path) -> Choices:
    """The choices of the run in `folder`; none where it has no run.json. Raises UserError for a damaged one."""
    path = folder / FILE
    try:
        return TypeAdapter(Choices).validate_python(read_json(path, {}))
    except ValidationError as error:
        raise UserError(f"{path} holds no choices of a run ({one_line(error)}): delete it and run again") from None


def write_choices(folder: Path, choices: Choices) -> None:
    """Keep the choices in the run's folder; no file where there are none."""
    if choices == Choices():
        (folder / FILE).unlink(missing_ok=True)
    else:
        write_json(folder / FILE, asdict(choices))


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """`section.key=value` -> {"section.key": value}, values read as in a profile. Raises WrongUse for another form."""
    settings: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        section, _, key = name.strip().partition(".")
        if not (sign and section and key and value.strip()):
            raise WrongUse(f"--set {text} is no setting: write it as section.key=value, such as pa_sft.learning_rate=1e-4")
        try:
            settings[f"{section}.{key}"] = yaml.load(value, Loader=Loader)
        except yaml.YAMLError as error:
            raise WrongUse(f"--set {text}: the value cannot be read ({one_line(error)})") from None
    return settings
