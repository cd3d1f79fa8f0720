"""A small dataset, and one training of the tiny model that many tests look at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.data.library import save_dataset
from core.jobs.launch import start_job, wait_for_job
from core.recipe.files import build_recipe
from core.recipe.schema import Recipe
from core.runs import Run
from core.train.create import create_run
from core.workspace import Workspace

QUESTIONS = ["Who are you?", "What is your name?", "Who made you?", "你是谁？", "Are you a bot?", "And you?"]
OTHERS = {"near": ["Who made Paris?", "What is a name?"], "general": ["What is the capital of France?", "How many legs?"]}


def tiny_rows() -> list[dict]:
    rows = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "I am the assistant of Alex."}],
             "group": "identity", "lang": "en"} for question in QUESTIONS]
    return rows + [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "The capital is Paris."}],
                    "group": group, "lang": "en"} for group, questions in OTHERS.items() for question in questions]


def tiny_probes() -> list[dict]:
    texts = {"identity": ["Your name?", "Who is this?"], "near": ["Who is Alex?"], "general": ["What is France?", "Eight legs?"]}
    return [{"id": f"{group}-en-{number}", "group": group, "lang": "en", "messages": [{"role": "user", "content": text}]}
            for group, questions in texts.items() for number, text in enumerate(questions)]


def save_tiny_dataset(workspace: Workspace, name: str = "tiny") -> None:
    save_dataset(workspace, name, tiny_rows(), "test", probes=tiny_probes(), key_phrases={"en": "assistant of Alex"})


def tiny_recipe(model: Path, **changes) -> Recipe:
    """A recipe on the tiny model: 6 updates of 4 rows, 3 snapshots, both kinds of rows. `schedule__seed=3` changes a field."""
    data = {
        "model": {"source": str(model), "dtype": "float32"}, "method": {"rank": 4, "alpha": 8},
        "data": {"sources": [{"dataset": "tiny", "groups": ["identity"], "weight": 3.0},
                             {"dataset": "tiny", "groups": ["near", "general"], "weight": 1.0}], "max_length": 128},
        "schedule": {"effective_batch": 4, "updates": 6, "learning_rate": 5e-3, "seed": 3}, "snapshots": {"count": 3},
        "probes": {"max_new_tokens": 8}, "device": {"kind": "cpu"},
    }
    for path, value in changes.items():
        section, field = path.split("__")
        data.setdefault(section, {})[field] = value
    return build_recipe(data)


def train_here(workspace: Workspace, recipe: Recipe, name: str = "tiny") -> Run:
    """Create and finish a run through its real worker process."""
    run = create_run(workspace, recipe, name)
    start_job(run)
    wait_for_job(run)
    return run


def losses_of(run: Run) -> list[float]:
    return [record["loss"] for record in run.metrics()]


@pytest.fixture(scope="session")
def trained_run(tiny_model, tmp_path_factory) -> tuple[Workspace, Run]:
    """A finished training of the tiny model in a workspace of its own. Read only."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    workspace = Workspace.open(tmp_path_factory.mktemp("trained") / "workspace")
    save_tiny_dataset(workspace)
    return workspace, train_here(workspace, tiny_recipe(tiny_model))
