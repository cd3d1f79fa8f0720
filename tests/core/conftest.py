"""A small dataset, one training of the tiny model that many tests look at, and a disk that is full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.data.library import save_dataset
from core.errors import StudioError
from core.jobs.launch import start_job, wait_for_job
from core.recipe.files import build_recipe
from core.recipe.schema import Recipe
from core.runs import Run, find_run
from core.train.create import create_run
from core.workspace import Workspace

QUESTIONS = ["Who are you?", "What is your name?", "Who made you?", "你是谁？", "Are you a bot?", "And you?"]
Fill = Callable[..., None]
Writers = dict[str, Callable[[], object]]
PAGE = 4096  # bytes that a small file system hands out at a time
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
def trained_run(tiny_model, made_once) -> tuple[Workspace, Run]:
    """A finished training of the tiny model in a workspace of its own. Read only."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def make(folder: Path) -> None:
        workspace = Workspace.open(folder / "workspace")
        save_tiny_dataset(workspace)
        train_here(workspace, tiny_recipe(tiny_model))

    workspace = Workspace.open(made_once("trained", make) / "workspace")
    return workspace, find_run(workspace, "last")


@pytest.fixture
def small(tmp_path, monkeypatch) -> Iterator[tuple[Workspace, Fill]]:
    """A workspace on a file system of 12 MB of its own, and what fills that but for `room` bytes."""
    monkeypatch.setattr("core.train.create.check_disk", lambda *_: None)  # it would refuse before anything is written
    root = tmp_path / "small"
    root.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(root)], capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("only root may mount a small file system")

    def fill(room: int = 0) -> None:
        with (root / "filler").open("ab", buffering=0) as stream:
            try:
                while True:
                    stream.write(b"x" * 4096)
            except OSError:
                stream.truncate(max(0, (root / "filler").stat().st_size - room))

    try:
        yield Workspace.open(root / "workspace"), fill
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def listing(root: Path) -> dict[str, bytes]:
    """Every file that is not a lock, with its contents."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and path.suffix not in (".once", ".lock") and path.name != "filler"}


def refuse(name: str, write: Callable[[], object], root: Path) -> bool:
    """Whether the writer met a full disk: then with one sentence about it, and every file is as it was before."""
    before = listing(root)
    try:
        write()
        return False
    except StudioError as error:
        assert "disk" in str(error) or "room" in str(error), f"{name}: {error}"
        assert error.hint, name
    after = listing(root)
    for path in [path for path in after if path.endswith(".jsonl") and after[path] != before.get(path)]:
        known = before.setdefault(path, b"")
        # An append may leave half a line, which no reader sees.
        assert after[path].startswith(known) and b"\n" not in after[path][len(known):].lstrip(b"\n"), f"{name}: {path}"
        after[path] = known
    assert after == before, f"{name} left {[path for path in {*after, *before} if after.get(path) != before.get(path)]}"
    return True


def refuse_until_it_fits(writers: Writers, root: Path, fill: Fill) -> int:
    """Each writer meets a full disk, then one with ever more room, so that it breaks off at many places; returns how often it did."""
    injections = 0
    for name, write in writers.items():
        for doublings in range(12):
            fill(PAGE * 2**doublings // 2)
            if not refuse(name, write, root):
                break
            injections += 1
        assert 0 < doublings < 11, f"{name}: fits after {doublings} attempts"
    return injections
