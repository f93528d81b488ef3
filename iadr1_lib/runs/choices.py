"""What a run does otherwise than its profile says: pictures of one's own, another model, single settings.

They lie in the run folder as run.json, beside profile and seed, so that every notebook, command and process of the run
makes the same choices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from iadr1_lib.errors import UserError, WrongUse, one_line
from iadr1_lib.files import read_json, read_object, write_json
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

    def updated(self, given: Choices) -> Choices:
        """These choices, with those of `given` before them. UserError where both name other data to train on."""
        if self.data and given.data and self.data != given.data:
            raise UserError(f"the run is about {', '.join(self.data)}: name another --folder for other pictures")
        split = given if given.test or given.hold_out else self
        data = given.data or self.data
        return Choices(data, split.test, split.hold_out, {**self.settings, **given.settings})


def read_choices(folder: Path) -> Choices:
    """The choices of the run in `folder`; none where it has no run.json. Raises UserError for a damaged one."""
    path = folder / FILE
    try:
        return TypeAdapter(Choices).validate_python(read_json(path, {}))
    except ValidationError as error:
        raise UserError(f"{path} holds no choices of a run ({one_line(error)}): delete it and run again") from None


def noted_run(folder: Path) -> tuple[str, int] | None:
    """Profile and seed of the run in `folder`; None where it has no run.json."""
    if not (folder / FILE).exists():
        return None
    note = read_object(folder / FILE, profile=str, seed=int)
    return note["profile"], note["seed"]


def write_choices(folder: Path, profile: str, seed: int, choices: Choices) -> None:
    """Keep the run's profile, seed and choices in its folder."""
    write_json(folder / FILE, {"profile": profile, "seed": seed, **asdict(choices)})


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
