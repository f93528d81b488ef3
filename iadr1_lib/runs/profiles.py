"""Profiles: the values of one size of the course, from data/profiles/<name>.yaml, each with its source."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from iadr1_lib.errors import UserError, WrongUse, one_line
from iadr1_lib.runs.places import project_root

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class Profile:
    """The values of one size of the course.

    sections: section name -> key -> value. sources: "section.key" -> where the paper or its released scripts
    state the value, or why it was chosen. path: the YAML file.
    """

    name: str
    sections: dict[str, dict[str, Any]]
    sources: dict[str, str]
    path: Path

    def section(self, name: str) -> dict[str, Any]:
        """Return a copy of one section's values."""
        if name not in self.sections:
            known = ", ".join(self.sections) or "none"
            raise UserError(f"profile {self.name} ({self.path}) has no section {name}: it has {known}")
        return dict(self.sections[name])

    def settings(self, section: str, settings_class: type[SettingsT]) -> SettingsT:
        """Build a pydantic model or dataclass from a section; each key must be a field, each value must fit.

        Fields with a default may be left out. Raises UserError naming an unknown, missing or ill-typed key.
        """
        values = self.section(section)
        where = f"profile {self.name} ({self.path}), section {section}"
        names = inspect.signature(settings_class).parameters
        if unknown := sorted(set(values) - set(names)):
            raise UserError(f"{where}: unknown key {', '.join(unknown)}; allowed are {', '.join(names)}")
        try:
            return TypeAdapter(settings_class).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "values"
            problem = "is missing" if first["type"].startswith("missing") else f"is wrong: {first['msg']}"
            raise UserError(f"{where}: {key} {problem}; set it as {{value: ..., source: ...}}") from error

    def with_settings(self, given: Mapping[str, Any], source: str) -> Profile:
        """The profile with other values for "section.key", each with `source` as its source.

        Raises UserError for a section that the profile does not have.
        """
        sections, sources = {name: dict(values) for name, values in self.sections.items()}, dict(self.sources)
        for name, value in given.items():
            section, _, key = name.partition(".")
            self.section(section)  # raises for one that is not there
            sections[section][key], sources[name] = value, source
        return replace(self, sections=sections, sources=sources)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per value (section, key, value, source), to be shown in a notebook."""
        return [
            {"section": section, "key": key, "value": value, "source": self.sources[f"{section}.{key}"]}
            for section, values in self.sections.items()
            for key, value in values.items()
        ]


def profile_names() -> list[str]:
    """Return the names of all profiles in data/profiles/."""
    return sorted(path.stem for path in (project_root() / "data" / "profiles").glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read data/profiles/<name>.yaml.

    Raises WrongUse for an unknown name, UserError for a value without source.
    """
    path = project_root() / "data" / "profiles" / f"{name}.yaml"
    if name not in profile_names():
        known = ", ".join(profile_names()) or "none"
        raise WrongUse(f"unknown profile {name}: available are {known} (in {path.parent})")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {one_line(error)}") from error
    if not isinstance(raw, dict) or not all(isinstance(section, dict) for section in raw.values()):
        raise UserError(f"{path} must hold sections of keys, each key as {{value: ..., source: ...}}")
    sections: dict[str, dict[str, Any]] = {section: {} for section in raw}
    sources: dict[str, str] = {}
    for section, entries in raw.items():
        for key, entry in entries.items():
            if not isinstance(entry, dict) or set(entry) != {"value", "source"} or not str(entry["source"] or "").strip():
                raise UserError(f"{path}: {section}.{key} needs a value and a source (where it is stated, or why)")
            sections[section][key] = entry["value"]
            sources[f"{section}.{key}"] = str(entry["source"])
    return Profile(name, sections, sources, path)


class Loader(yaml.SafeLoader):
    """Reads `1e-4` as a number and `off` as a word, as YAML 1.2 does; PyYAML follows YAML 1.1."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(_BOOL, re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
