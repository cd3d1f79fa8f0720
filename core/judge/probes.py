"""The questions a run is judged by, and those a user adds to them. No torch.

A dataset's own probes decide the verdict. Probes added later lie in the run's folder (`probes_added.jsonl`); they are asked and shown
like the others. One with a check counts, in a metric of its own; one without never does, so that a verdict does not move because somebody
was curious.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from core.data.library import IDENTITY, Dataset, load_dataset
from core.data.persona import held_out_probes
from core.data.wordings import normalised, shipped_languages
from core.errors import StudioError
from core.jobs.once import one_at_a_time
from core.judge.taught import OWN as OWN
from core.runs import Run
from core.workspace import Workspace, append_jsonl, read_jsonl, write_jsonl

LONGEST_QUESTION = 2000  # characters; a probe is a question, not a document

_CHINESE = re.compile(r"[\u3400-\u9fff]")


def probes_of(workspace: Workspace, run: Run) -> tuple[Dataset, list[dict[str, Any]]]:
    """The dataset whose probes judge this run, and every probe it is asked: the dataset's, then the added ones (group `own`).

    A dataset without probes is asked the shipped near and general questions, so that at least what was kept can be seen.

    Raises:
        StudioError: the dataset is gone.
    """
    dataset = load_dataset(workspace, run.recipe().probe_dataset)
    return dataset, (dataset.probes() or shipped_probes(dataset)) + added_probes(run)


def shipped_probes(dataset: Dataset) -> list[dict[str, Any]]:
    """Near and general questions in the dataset's languages, none of which its rows ask."""
    asked = {normalised(message["content"]) for row in dataset.each_row() for message in row.get("messages", ())
             if message["role"] == "user"}
    languages = [code for code in dataset.card.languages if code in shipped_languages()] or ["en"]
    return [probe for code in languages for probe in held_out_probes(code, trained=asked)]


def counted(probes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The probes that decide the verdict."""
    return [probe for probe in probes if probe["group"] != OWN or probe.get("check")]


def added_probes(run: Run) -> list[dict[str, Any]]:
    return read_jsonl(run.folder / "probes_added.jsonl")


def add_probe(workspace: Workspace, run: Run, question: str, is_identity: bool = False) -> dict[str, Any]:
    """Add a question to those that every snapshot of `run` is asked; the same question is not added twice.

    Args:
        workspace: where the run's dataset lies.
        run: whose snapshots shall be asked.
        question: what to ask.
        is_identity: the taught answer is the right one; for any other question it is a leak.

    Raises:
        StudioError: it is empty or very long.
    """
    text = question.strip()
    if not text:
        raise StudioError("The question is empty.", "Write what every snapshot shall be asked.")
    if len(text) > LONGEST_QUESTION:
        raise StudioError("The question has {length} characters; {limit} are the most.", "Ask something shorter.",
                          length=len(text), limit=LONGEST_QUESTION)
    with one_at_a_time(workspace, "probes"):
        for known in probes_of(workspace, run)[1]:
            if known["messages"] == [{"role": "user", "content": text}]:
                return known
        language = language_of(text)
        number = len(added_probes(run)) + 1
        probe = {"id": f"{OWN}-{language}-{number:02d}", "group": OWN, "lang": language,
                 "messages": [{"role": "user", "content": text}], "about": IDENTITY if is_identity else "other"}
        append_jsonl(run.folder / "probes_added.jsonl", probe)
    return probe


def add_probes(workspace: Workspace, run: Run, probes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add probes as `read_probe_file` gives them; one with the id of an earlier one takes its place. Returns all that are added."""
    with one_at_a_time(workspace, "probes"):
        taken = {probe["id"] for probe in load_dataset(workspace, run.recipe().probe_dataset).probes()}
        for number, probe in enumerate(probes, start=1):
            if probe["id"] in taken:
                raise StudioError("Probe {number} has the id {id}, which a probe of the dataset has already.", "Give it another id.",
                                  number=number, id=probe["id"])
        kept = {probe["id"]: probe for probe in [*added_probes(run), *probes]}
        write_jsonl(run.folder / "probes_added.jsonl", list(kept.values()))
    return list(kept.values())


def language_of(text: str) -> str:
    return "zh" if _CHINESE.search(text) else "en"
