"""The work of an `ask` job: the same questions to several models, the answers side by side."""

from __future__ import annotations

from typing import Any

from core.chat.voices import Voices
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.words import Text
from core.workspace import Workspace


def ask_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Ask `spec["questions"]` of `spec["models"]`, each question on its own."""
    spec = job.spec()
    recorder.progress(0, 1, Text("asking the same questions of every model"))
    voices = Voices(workspace, spec["models"])
    answers = voices.answer([[{"role": "user", "content": question}] for question in spec["questions"]], spec["max_new_tokens"])
    recorder.progress(1, 1, Text("asking the same questions of every model"))
    return {"models": spec["models"], "questions": spec["questions"], "answers": answers}
