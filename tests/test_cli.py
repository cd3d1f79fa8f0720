"""The command line: help with an example, one JSON object, failures in two lines, and no traceback ever."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from core import workspace as workspace_module
from core.data.library import Card
from core.jobs.folder import JobState, create_job
from core.jobs.process import ProcessIdentity
from core.recipe.files import find_recipe, save_recipe
from core.runs import find_run, list_runs
from core.workspace import CHECKOUT, Workspace, read_json, write_json
from studio.cli import app, main
from tests.core.conftest import save_tiny_dataset, tiny_recipe

COMMAND = [sys.executable, "-m", "studio.cli"]


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        assert self.code == 0 and self.err == "", self
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data


@pytest.fixture
def sweetspot(capsys) -> Callable[..., Said]:
    """Run a command in this process."""

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        return Said(ended.value.code or 0, printed.out, printed.err)

    return run


@pytest.fixture
def home(workspace, tiny_model) -> Workspace:
    """A workspace with a dataset, a recipe and a model, all called tiny."""
    save_tiny_dataset(workspace)
    save_recipe(workspace, "tiny", tiny_recipe(tiny_model))
    shutil.copytree(tiny_model, workspace.models / "tiny")
    return workspace


def in_a_process(*arguments: str) -> Said:
    done = subprocess.run([*COMMAND, *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=100)
    return Said(done.returncode, done.stdout, done.stderr)


def assert_refused(said: Said, problem: str, code: int = 2) -> None:
    """Two lines on stderr, nothing on stdout."""
    lines = said.err.splitlines()
    assert said.code == code and said.out == "" and len(lines) == 2, said
    assert lines[0].startswith("problem: ") and lines[1].startswith("hint: ") and len(lines[1]) > 12, said
    assert re.search(problem, lines[0]), said
    assert "Traceback" not in said.err


# help


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    pending = [((), typer.main.get_command(app))]
    while pending:
        words, command = pending.pop()
        members = getattr(command, "commands", None)
        if members is None:
            yield words, command
        else:
            pending += [((*words, name), member) for name, member in members.items()]


COMMANDS = dict(commands())


def test_every_command_is_seen():
    assert len(COMMANDS) >= 31
    assert {("lesson",), ("studio",), ("doctor",), ("data", "persona"), ("recipe", "check"), ("train",), ("runs",), ("run", "stop"),
            ("judge",), ("pick",), ("merge",), ("chat",), ("models", "add")} <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_explains_itself(words):
    command = COMMANDS[words]
    said = CliRunner().invoke(app, [*words, "--help"])
    assert said.exit_code == 0 and "Traceback" not in said.output
    prose = " ".join(re.split("Arguments:|Options:", said.output)[0].split())
    example = re.search(rf"Example: sweetspot ({' '.join(words)}\b.*)", prose)
    assert example, "its help must show how it is called"
    arguments = shlex.split(example[1])[len(words):]
    command.make_context(" ".join(words), arguments)  # raises where the example has gone out of date
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--json" in options or words == ("studio",)
    assert "--workspace" in options or words in {("studio",), ("recipe", "presets")}
    undescribed = [p.name for p in command.params if p.param_type_name == "option" and not p.help]
    assert undescribed == []


def test_without_a_command_the_help_is_shown(sweetspot):
    for words in ((), ("data",), ("run",)):
        said = sweetspot(*words)
        assert said.code == 2 and "Usage: sweetspot" in said.err and "problem" not in said.err


# one JSON object


@pytest.mark.parametrize("arguments", [
    "doctor", "runs", "data list", "data show tiny --rows 1", "data preview tiny --model tiny", "data lint tiny --model tiny",
    "recipe presets", "recipe show tiny", "recipe new mine --from tiny --set schedule.updates=48", "recipe check tiny",
    "recipe diff tiny identity-lesson-cpu", "models list", "models show tiny", "models delete tiny --yes"])
def test_json_is_one_object_and_nothing_else(home, sweetspot, arguments):
    assert sweetspot(*arguments.split(), "--json").json()


@pytest.mark.parametrize("arguments", ["doctor", "runs", "data list", "data show tiny", "recipe presets", "recipe check tiny",
                                       "recipe diff tiny identity-lesson-cpu", "models list", "models show tiny"])
def test_for_people_there_are_words(home, sweetspot, arguments):
    said = sweetspot(*arguments.split())
    assert said.code == 0 and said.err == "" and len(said.out) > 10


def test_a_recipe_printed_is_a_recipe(home, sweetspot):
    """Piped into a file it must load again: no line broken at the terminal's width, no markup eaten."""
    said = sweetspot("recipe", "show", "tiny")
    assert yaml.safe_load(said.out)["model"]["source"].endswith("tiny")
    (home.recipes / "again.yaml").write_text(said.out, encoding="utf-8")
    assert find_recipe(home, "again") == find_recipe(home, "tiny")


def test_what_looks_like_markup_is_shown_as_it_is(home, sweetspot):
    row = {"messages": [{"role": "user", "content": "[bold]who[/bold] :smile: [/]" + " long" * 40},
                        {"role": "assistant", "content": "x"}], "group": "general", "lang": "en"}
    (home.datasets / "tiny" / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert "[bold]who[/bold] :smile: [/]" + " long" * 40 in sweetspot("data", "show", "tiny").out


# bad input


@pytest.mark.parametrize(("arguments", "problem"), [
    ("dat list", "No such command 'dat'"), ("data show", "Missing argument"), ("runs --nope", "No such option"),
    ("chat tiny --temperature 9", "temperature"), ("run stop last --grace -1", "grace"), ("studio --port x", "port"),
    ("studio --port 99999", "99999 is not a port"),
    ("data show none", "no dataset called none"), ("data show ../x", "cannot be the name of a dataset"),
    ("data preview tiny --row 99 --model tiny", "rows go from 1 to 10"), ("data preview tiny", "not prepared"),
    ("data persona --name {{name}} --no-replay", "placeholder"), ("data persona --name Alex --lang xx --no-replay", "language"),
    ("data persona --name= --no-replay", "empty"),
    ("recipe show none", "no recipe called none"), ("recipe new ../x --from tiny", "cannot be the name of a recipe"),
    ("recipe show ../x", "no recipe file ../x"),
    ("recipe check tiny --set schedule.lerning_rate=1e-4", "lerning_rate"), ("recipe check tiny --set method.rank=0", "rank"),
    ("recipe check tiny --set schedule.updates=many", "updates"), ("recipe check tiny --set updates", "is not field=value"),
    ("train tiny --data none", "no dataset called none"), ("train tiny --data ../x", "data.sources"),
    ("train tiny --set model.source=/none", "no model folder at /none"), ("train tiny --set schedule.learning_rate=1e9", "learning_rate"),
    ("run show last", "No run is called 'last'"), ("run stop ../runs", "No run is called"), ("run resume x", "No run is called 'x'"),
    ("judge last", "No run is called"), ("pick last", "No run is called"), ("merge last@pick alex", "No run is called"),
    ("merge tiny ../x", "cannot be the name of a model"), ("merge tiny tiny", "A model called tiny exists already"),
    ("merge tiny alex", "tiny has no adapter to merge"), ("merge tiny alex --dtype int4", "dtype"),
    ("models show nobody", "No model is called nobody"), ("models delete ../x --yes", "cannot be the name of a model"),
    ("models add nobody/nothing", "could not be fetched from the hub"), ("chat nobody --ask Hi", "No model is called nobody"),
    ("runs --workspace /proc/none", "cannot be written"),
])
def test_bad_input_is_a_problem_and_a_hint(home, sweetspot, arguments, problem):
    assert_refused(sweetspot(*arguments.split()), problem)
    assert list_runs(home) == [] and not (home.root.parent / "x").exists()


def test_an_unknown_key_in_a_file_names_line_and_guess(home, sweetspot):
    path = home.recipes / "tiny.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("learning_rate:", "lerning_rate:"), encoding="utf-8")
    said = sweetspot("train", "tiny")
    assert_refused(said, r"tiny.yaml, line \d+.*lerning_rate")
    assert "learning_rate" in said.err.splitlines()[1]


def test_an_empty_dataset(home, sweetspot):
    (home.datasets / "tiny" / "rows.jsonl").write_text("")
    for arguments in ("train tiny", "data show tiny --json"):
        assert_refused(sweetspot(*arguments.split()), "The dataset tiny has no rows")
    card = home.datasets / "tiny" / "card.json"
    assert Card.model_validate(read_json(card)).name == "tiny"
    card.write_text("{")
    assert_refused(sweetspot("data", "show", "tiny"), "card of the dataset tiny cannot be read")
    assert sweetspot("data", "list", "--json").json() == {"datasets": []}


def test_a_model_folder_without_weights(home, sweetspot):
    (home.models / "tiny" / "model.safetensors").unlink()
    for arguments in ("train tiny --set model.source=tiny", "models show tiny"):
        assert_refused(sweetspot(*arguments.split()), "holds no weights")
    listed = sweetspot("models", "list", "--json").json()["models"]
    assert listed[0]["name"] == "tiny" and "holds no weights" in listed[0]["problem"]


def test_no_room_for_the_snapshots(home, sweetspot, monkeypatch):
    monkeypatch.setattr(Workspace, "free_bytes", lambda self: 1000)
    said = sweetspot("train", "tiny")
    assert_refused(said, "3 snapshots need about .* GB of disk and 0.0 GB are free")
    assert "snapshots.count" in said.err and list_runs(home) == []


def test_a_disk_that_fills_up(home, sweetspot, monkeypatch):
    def replace(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(workspace_module.os, "replace", replace)
    assert_refused(sweetspot("recipe", "new", "mine", "--from", "tiny"), "The disk is full; .*mine.yaml was not written")
    assert_refused(sweetspot("train", "tiny"), "The disk is full")
    monkeypatch.undo()
    assert list(home.runs.iterdir()) == [] and list(home.recipes.iterdir()) == [home.recipes / "tiny.yaml"]


def test_what_nobody_foresaw(home, sweetspot, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a strange\nthing " + "x" * 1000)
    monkeypatch.setattr("studio.commands.runs.list_runs", fail)
    said = sweetspot("runs")
    assert_refused(said, "nobody foresaw: RuntimeError: a strange thing", code=1)
    assert "SWEETSPOT_DEBUG=1" in said.err and len(said.err) < 600
    monkeypatch.setenv("SWEETSPOT_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(["runs"])


# runs


def fake_run(home: Workspace, name: str = "alex", **state: Any):
    job = create_job(home.runs / f"20260101-120000-{name}-0a1b", "train", {"name": name, "updates": 6})
    job.write_state(JobState(kind="train", created=1.0, **state))
    return job


def test_a_damaged_run_is_listed_beside_the_others(home, sweetspot):
    fake_run(home, state="finished")
    damaged = fake_run(home, "broken", state="finished")
    for name in ("spec.json", "state.json"):
        (damaged.folder / name).write_text("{")
    runs = {entry["run"].split("-")[2]: entry for entry in sweetspot("runs", "--json").json()["runs"]}
    assert runs["alex"]["state"] == "finished" and runs["broken"]["state"] == "failed" and runs["broken"]["hint"]
    assert "broken" in sweetspot("runs").out and sweetspot("run", "show", "broken").code == 0
    assert sweetspot("run", "delete", "broken", "--yes", "--json").json()["deleted"] == damaged.id
    assert not damaged.folder.exists()


def test_a_run_at_work_is_neither_deleted_nor_resumed(home, sweetspot):
    fake_run(home, state="running", process=ProcessIdentity.own())
    assert_refused(sweetspot("run", "delete", "alex", "--yes"), "is still running")
    assert_refused(sweetspot("run", "resume", "alex"), "is still running")


def test_deleting_asks_on_stderr_and_no_means_no(home, monkeypatch):
    run = fake_run(home, state="finished")
    done = subprocess.run([*COMMAND, "run", "delete", "alex", "--json"], cwd=CHECKOUT, input="n\n", capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "Move 2026" in done.stderr and "Nothing was done" in done.stderr
    assert "Traceback" not in done.stderr and run.folder.exists()


def test_ctrl_c_leaves_the_job_running_and_says_so(home, sweetspot, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr("studio.terminal.wait_for_job", interrupt)
    run = fake_run(home, state="running", process=ProcessIdentity.own())
    said = sweetspot("run", "follow", "alex")
    assert said.code == 130 and f"sweetspot run follow {run.id}" in said.err and f"sweetspot run stop {run.id}" in said.err


# the real process


def test_a_process_says_what_main_says(home):
    assert in_a_process("data", "list", "--json").json()["datasets"][0]["name"] == "tiny"
    assert_refused(in_a_process("data", "show", "../x"), "cannot be the name of a dataset")
    assert_refused(in_a_process("run", "show", "last", "--json"), "No run is called 'last'")


def test_a_reader_that_leaves_early_is_no_error(home):
    child = subprocess.Popen([*COMMAND, "recipe", "show", "tiny"], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.close()
    _, err = child.communicate(timeout=100)
    assert "Traceback" not in err and "problem" not in err


def test_a_killed_process_is_a_failure_with_a_way_out(home, monkeypatch):
    """The worker dies while it loads; following it ends with exit code 1, and the run stays to be looked at and resumed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started = in_a_process("train", "tiny", "--no-wait", "--json").json()
    run = find_run(home, started["run"])
    os.killpg(run.process().pid, signal.SIGKILL)
    said = in_a_process("run", "follow", "last")
    assert_refused(said, "it was killed, or the machine ran out of memory", code=1)
    assert "sweetspot run resume" in said.err
    shown = in_a_process("run", "show", "last", "--json").json()
    assert (shown["state"], shown["updates"], shown["checkpoints"]) == ("failed", 6, []) and "killed" in shown["problem"]


# the whole path, its workers in this process


@pytest.mark.usefixtures("work_here")
def test_train_judge_pick_merge_and_chat(home, sweetspot):
    trained = sweetspot("train", "tiny", "--name", "Alex's run", "--json").json()
    assert trained["state"] == "finished" and trained["checkpoints"] == [2, 4, 6] and "alex-s-run" in trained["run"]
    assert_refused(sweetspot("run", "resume", "last"), "has finished; there is nothing to go on with")
    assert_refused(sweetspot("pick", "last"), "is not judged yet")

    judged = sweetspot("judge", "last", "--json").json()
    assert [score["step"] for score in judged["scores"]] == [0, 2, 4, 6] and judged["verdict"]["verdict"]
    assert sweetspot("pick", "last", "--step", "4", "--json").json()["pick"]["step"] == 4
    assert_refused(sweetspot("pick", "last", "--step", "5"), "step '?5")
    for arguments in ("runs", "run show last", "pick last", "run follow last", "run stop last"):
        said = sweetspot(*arguments.split())
        assert said.code == 0 and said.err == "" and said.out

    merged = sweetspot("merge", "last@pick", "alex", "--json").json()
    assert merged["verification"]["same_answers"] and sweetspot("models", "show", "alex", "--json").json()["parameters"]
    assert_refused(sweetspot("merge", "last@pick", "alex"), "A model called alex exists already")
    answers = sweetspot("chat", "tiny", "last@pick", "alex", "--ask", "Who are you?", "--max-new-tokens", "4", "--json").json()["answers"]
    assert list(answers) == ["tiny", "last@pick", "alex"] and answers["alex"] == answers["last@pick"]


@pytest.mark.usefixtures("work_here")
def test_a_job_that_fails_speaks_through_its_command(home, sweetspot):
    write_json(home.models / "tiny" / "config.json", {"model_type": "nothing-known"})
    said = sweetspot("train", "tiny", "--set", "model.source=tiny", "--json")
    assert_refused(said, "cannot be loaded", code=1)
    assert sweetspot("runs", "--json").json()["runs"][0]["state"] == "failed"


def test_a_launch_script_is_printed_and_nothing_is_started(sweetspot, home):
    said = sweetspot("train", "tiny", "--name", "it's mine", "--set", "schedule.updates=9", "--gpus", "4", "--nodes", "2",
                     "--script", "slurm")
    assert said.code == 0 and said.err == "" and said.out.startswith("#!/bin/sh\n")
    assert "#SBATCH --gpus-per-node=4" in said.out and "schedule.updates=9" in said.out and "$SLURM_NODEID" in said.out
    assert sweetspot("train", "tiny", "--gpus", "0,2", "--script", "plain", "--json").json()["script"].endswith("--gpus 2\n")
    assert list_runs(home) == []


@pytest.mark.parametrize(("options", "words"), [
    (["--script", "windows"], "plain or slurm"), (["--nodes", "2"], "HOST:PORT"), (["--nodes", "2", "--host", "node0"], "HOST:PORT"),
    (["--nodes", "2", "--rank", "2", "--host", "node0:29500"], "0 to 1"), (["--gpus", "0,2"], "names GPUs (0, 2)"),
    (["--gpus", "many"], "device.gpus must be auto"), (["--gpus", "0"], "device.gpus must be auto"),
])
def test_what_cannot_be_shared_out_is_said(sweetspot, home, options, words):
    said = sweetspot("train", "tiny", *options)
    assert said.code == 2 and words in said.err and "Traceback" not in said.err and said.out == ""
    assert list_runs(home) == []
