"""Teachers that need a server or a recording: tasks with the truth come in, drafts of reasoning go out.

teacher = ApiTeacher(Remote(Endpoint("anthropic", "claude-haiku-5-5"), "runs/replies", cost_cap=2.0))
teacher = RecordingTeacher("recorded.jsonl", teacher)   # writes down every draft that it gives out
teacher = ReplayTeacher("recorded.jsonl")               # later, or elsewhere: no key, no server
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from iadr1_lib.answer import DEFECT_TYPES, cell_names
from iadr1_lib.data import open_image
from iadr1_lib.errors import UserError
from iadr1_lib.expert_ad import Draft, Facts, Task, Teacher
from iadr1_lib.files import Journal, read_json_lines
from iadr1_lib.records import Sample
from iadr1_lib.remote.client import Cost, Remote, read_yaml
from iadr1_lib.remote.providers import Request
from iadr1_lib.runs import project_root


class ApiTeacher:
    """A vision-language model that sees the picture, is given its ground truth, and writes the reasoning.

    Args:
        remote: whom to ask; it keeps replies, counts the cost and retries.

    Raises:
        UserError: data/prompts/teacher.yaml cannot be read; while writing, as `Remote.ask`, or for an unknown {word}.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        path = project_root() / "data" / "prompts" / "teacher.yaml"
        self._prompts = read_yaml(path, "system", "defective", "normal", "again")
        self.name = remote.endpoint.name
        self.key = f"{self.name}, prompts {hashlib.sha256(json.dumps(self._prompts).encode()).hexdigest()[:12]}"

    def write(self, tasks: Sequence[Task]) -> Iterator[Draft]:
        """Drafts in the tasks' order; what was refused, cut off, failed or not sent has none, but a sentence."""
        for reply in self.remote.ask(self.request(task) for task in tasks):
            if reply.status == "ok" and reply.text:
                yield Draft(" ".join(reply.text.split()))
            else:
                yield Draft(None, f"{reply.status}: {reply.message}")

    def request(self, task: Task) -> Request:
        """What is sent for a task: the prompts, filled in, and the sample's own picture."""
        words = _words(task)
        keys = ["normal" if task.facts.label == "no" else "defective", *(["again"] if task.attempt else [])]
        try:
            system, *texts = (str(self._prompts[key]).format_map(words) for key in ("system", *keys))
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"a {{word}} of the prompts means nothing ({error}): use {', '.join(words)}") from error
        text = "\n".join(line for line in "\n".join(texts).splitlines() if line.strip())
        return Request(system.strip(), text, (Path(task.sample.image),), attempt=task.attempt)

    def estimate(self, samples: Sequence[Sample], tries: int) -> Cost:
        """What the samples would cost at most, roughly: every draft needed, nothing written or kept yet."""
        # Nothing is measured: the words for what a mask would tell are of about the same length.
        tasks = (Task(sample, Facts(sample.label), attempt) for attempt in range(tries) for sample in samples)
        return self.remote.estimate(self.request(task) for task in tasks)


def _words(task: Task) -> dict[str, str]:
    """What the {words} of the prompts stand for."""
    facts = task.facts
    look_alike = f"A {facts.look_alike} at the {facts.look_alike_cell} belongs to the item; it is no defect."
    return {
        "cells": ", ".join(cell_names(facts.grid)),
        "category": task.sample.category.replace("_", " "),
        "types": ", ".join(name for name in DEFECT_TYPES if name != facts.defect_type),
        "location": facts.location or "a place that you find yourself",
        "type": facts.defect_type or "a kind that you find yourself",
        "size": facts.size,
        "tone": facts.tone,
        "form": facts.form,
        "contrast": facts.step,
        "look_alike": look_alike if facts.look_alike and facts.look_alike_cell else "",
        "reasons": "\n".join(f"- {reason}" for reason in task.reasons) or "- it did not keep to the rules",
    }


class RecordingTeacher:
    """Another teacher, whose drafts are also written to a JSON Lines file, each as soon as it is given out.

    Lines are added to those that are there; of two for the same picture and attempt the later counts. A line has
    teacher, image (the file's name, for the reader), pixels (a hash), attempt, reasoning, failure.
    """

    def __init__(self, path: str | Path, teacher: Teacher) -> None:
        self._journal, self._teacher = Journal(path), teacher
        self.name, self.key = teacher.name, teacher.key

    def write(self, tasks: Sequence[Task]) -> Iterator[Draft]:
        """The other teacher's drafts."""
        for task, draft in zip(tasks, self._teacher.write(tasks), strict=True):
            image = Path(task.sample.image)
            row = {"teacher": self.name, "image": image.name, "pixels": _pixel_hash(image), "attempt": task.attempt}
            self._journal.append(row | asdict(draft))
            yield draft


class ReplayTeacher:
    """Plays back a recording: the same picture and attempt get the same draft, wherever the picture lies.

    Pictures are known by their pixels. A task that was not recorded has no draft, but a sentence. Raises UserError for
    a missing file or a line that is no recorded draft.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(f"There are no recorded drafts {path}: check the path, or record them with --record")
        self._drafts: dict[tuple[str, int], Draft] = {}
        names = set()
        for number, row in read_json_lines(self._path):
            try:
                self._drafts[row["pixels"], row["attempt"]] = Draft(row["reasoning"], row["failure"])
                names.add(row["teacher"])
            except (KeyError, TypeError):
                raise UserError(f"{path}, line {number} is no recorded draft: remove the line") from None
        self.name = f"replay of {', '.join(sorted(names)) or 'nothing'}"
        self.key = f"{self.name}, {hashlib.sha256(self._path.read_bytes()).hexdigest()[:12]}"

    def write(self, tasks: Sequence[Task]) -> Iterator[Draft]:
        """The recorded drafts, in the tasks' order."""
        for task in tasks:
            draft = self._drafts.get((_pixel_hash(task.sample.image), task.attempt))
            missing = f"attempt {task.attempt} at {Path(task.sample.image).name} is not recorded in {self._path.name}"
            yield draft or Draft(None, missing)


def _pixel_hash(image: str | Path) -> str:
    """A hash of the picture as it is seen: file names, formats and metadata do not matter."""
    picture = open_image(image)
    return hashlib.sha256(f"{picture.width}x{picture.height}:".encode() + picture.tobytes()).hexdigest()
