"""`sweetspot recipe ...`: estimates, trials, fits, imports, and hand-edited files of every kind of wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.jobs.folder import Job, JobState
from core.recipe import load_recipe, save_recipe
from core.recipe.document import LARGEST_BYTES
from core.recipe.draft import read_draft, write_draft
from core.recipe.trial import Measured, keep_trial
from core.workspace import Workspace
from studio.cli import main
from tests.core.conftest import save_tiny_dataset, tiny_recipe

Sweetspot = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweetspot(capsys: pytest.CaptureFixture[str]) -> Sweetspot:
    """Run a command here: its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def mine(workspace: Workspace, tiny_model: Path) -> Path:
    """A recipe of one's own, with a comment, on the tiny model and dataset."""
    save_tiny_dataset(workspace)
    path = save_recipe(workspace, "mine", tiny_recipe(tiny_model, device__micro_batch=1, device__checkpointing="on"))
    path.write_text(path.read_text(encoding="utf-8").replace("  rank: 4", "  rank: 4 # narrow"), encoding="utf-8")
    return path


def test_an_estimate_names_every_part(mine: Path, sweetspot: Sweetspot) -> None:
    code, out, err = sweetspot("recipe", "estimate", "mine", "--json")
    said: dict[str, Any] = json.loads(out)
    assert (code, err, said["basis"], said["updates"], said["snapshot_steps"]) == (0, "", "arithmetic", 6, [2, 4, 6])
    assert set(said["memory"]) == {"weights", "adapter", "gradients", "optimizer", "activations", "logits", "runtime"}
    assert said["memory_bytes"] == sum(said["memory"].values()) and said["seconds"] > 0 and said["trained_tokens"] < said["tokens"]
    code, out, err = sweetspot("recipe", "estimate", "mine")
    assert (code, err) == (0, "") and "runtime 0.52" in out and "a guess from arithmetic" in out
    assert f"{said['tokens']:,} tokens are read, {said['trained_tokens']:,} of them trained" in out


def test_estimate_measure_runs_a_trial_and_believes_it(mine: Path, sweetspot: Sweetspot, workspace: Workspace,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def work(job: Job) -> None:
        keep_trial(workspace, load_recipe(job.folder / "recipe.yaml"), Measured(3_000_000_000, 0.1, 5, 0, 0, 0, 100, job.id))
        job.write_state(JobState(kind="trial", state="finished", created=1.0))

    monkeypatch.setattr("core.recipe.trial.start_job", work)
    said = json.loads(sweetspot("recipe", "estimate", "mine", "--measure", "--json")[1])
    assert (said["basis"], said["memory_bytes"]) == ("trial", 3_000_000_000) and said["measured_on"]
    assert said["seconds"] == pytest.approx(5 + 0.1 * said["tokens"])


def test_a_finding_names_its_field_and_a_difference_its_values(mine: Path, sweetspot: Sweetspot) -> None:
    out = sweetspot("recipe", "check", "mine", "--set", "schedule.learning_rate=0.1", "--set", "method.targets=[wq]")[1]
    assert "warning  schedule.learning_rate: The learning rate 0.1 is far above" in out
    assert "error    method.targets: The model has no" in out
    changes = ("--set", "schedule.learning_rate=5e-5", "--set", "method.dora=true")
    assert sweetspot("recipe", "new", "other", "--from", "mine", *changes)[0] == 0
    out = sweetspot("recipe", "diff", "mine", "other")[1]
    assert "0.005" in out and "5e-05" in out and "true" in out and "rank" not in out


def test_what_cannot_be_told_is_not_blamed_on_the_model_or_a_gpu(mine: Path, sweetspot: Sweetspot) -> None:
    nothing = ("--set", "data.sources=[{dataset: tiny, groups: [identity]}, {dataset: tiny, groups: [poems]}]")
    code, out, err = sweetspot("recipe", "estimate", "mine", *nothing)
    assert (code, err) == (0, "") and "cannot be told yet" in out and "GPU" not in out
    code, out, err = sweetspot("recipe", "fit", "mine", *nothing)
    assert (code, out) == (2, "") and "rows of this recipe cannot be measured" in err
    code, out, err = sweetspot("recipe", "fit", "mine", "--set", "model.source=nobody/has-this-one")
    assert code == 2 and "model is not on this machine" in err


def test_a_recipe_is_not_written_over_another(mine: Path, sweetspot: Sweetspot) -> None:
    before = mine.read_bytes()
    code, out, err = sweetspot("recipe", "new", "mine", "--from", "identity-lesson-cpu")
    assert (code, out) == (2, "") and "already a recipe called mine" in err and mine.read_bytes() == before


def test_a_long_run_is_measured_first(mine: Path, sweetspot: Sweetspot, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr("core.recipe.trial.start_job", lambda job: started.append("trial"))
    monkeypatch.setattr("core.train.create.start_job", lambda job: started.append("train"))
    monkeypatch.setattr("core.recipe.pace.processor_rate", lambda: 1e9)
    assert sweetspot("train", "mine", "--no-wait", "--json")[0] == 0 and started == ["train"], "six updates are soon done"
    long = ("--set", "schedule.updates=1000000", "--set", "snapshots.count=12")
    assert sweetspot("train", "mine", "--no-wait", *long, "--no-measure", "--json")[0] == 0 and started == ["train"] * 2
    out = sweetspot("train", "mine", "--no-wait", *long)[1]
    assert started == ["train", "train", "trial", "train"] and "measures it first" in out


def test_fit_changes_how_and_never_what(mine: Path, sweetspot: Sweetspot) -> None:
    before = load_recipe(mine)
    said = json.loads(sweetspot("recipe", "fit", "mine", "--json")[1])
    assert said["changes"] == {"device.micro_batch": 4, "device.checkpointing": "off"} and load_recipe(mine) == before
    assert (said["rows"], said["accumulated"]) == (4, 1) and said["gain"] > 1.2 and said["memory_bytes"] < said["free_bytes"]
    out = sweetspot("recipe", "fit", "mine", "--apply")[1]
    after = load_recipe(mine)
    assert "the updates are the same" in out and "rank: 4 # narrow" in mine.read_text(encoding="utf-8")
    assert (after.device.micro_batch, after.device.checkpointing) == (4, "off")
    assert (after.schedule, after.data, after.method, after.model) == (before.schedule, before.data, before.method, before.model)
    assert "Nothing to change" in sweetspot("recipe", "fit", "mine")[1]


def test_import_xtuner_says_what_became_of_each_setting(workspace: Workspace, sweetspot: Sweetspot, tmp_path: Path) -> None:
    config = tmp_path / "small_gpu2.py"
    config.write_text("""import os
model = dict(type='SupervisedFinetune', llm=dict(pretrained_model_name_or_path='org/name'), lora=dict(r=8, lora_alpha=16))
train_dataloader = dict(batch_size=1, dataset=dict(type='process_hf_dataset', dataset=dict(path='a/b'), max_length=64))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4), accumulative_counts=16)
train_cfg = dict(max_epochs=3)
os.system('touch pwned')
""", encoding="utf-8")
    said = json.loads(sweetspot("recipe", "import-xtuner", str(config), "--json")[1])
    assert said["recipe"]["schedule"]["effective_batch"] == 32 and said["name"] == "small_gpu2"
    assert [note["key"] for note in said["not_run"]] == ["line 6"] and "touch pwned" in said["not_run"][0]["text"]
    assert not list(Path.cwd().glob("pwned"))
    code, out, _ = sweetspot("recipe", "import-xtuner", str(config), "--name", "other", "--gpus", "1")
    assert code == 0 and "Not run:" in out and "schedule.effective_batch: 1 per GPU x 16 accumulated x 1 GPU" in out
    code, out, err = sweetspot("recipe", "import-xtuner", str(tmp_path / "none.py"))
    assert (code, out) == (2, "") and "cannot be read" in err and len(err.splitlines()) == 2


# How people break a recipe by hand: the text after `# narrow`, the line of the fault counted from there, the field.
HAND_MADE = {
    "type": ("  rank: many", "method.rank"), "1e-4 in quotes": ("schedule:\n  learning_rate: '1e-4'", "schedule.learning_rate"),
    "no": ("method:\n  rslora: no", "method.rslora"), "tab": ("method:\n\trank: 4", "method.rank"),
    "twice": ("title: a\ntitle: b", "title"),
    "anchor": ("title: &a " + "x" * 100_000 + "\ndata: *a", "(title)"),
    "tag": ("schedule:\n  # fast\n  updates: !!python/object/apply:os.system ['touch pwned']", "schedule.updates"),
    "unknown": ("method:\n  rnak: 4", "method.rnak"),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_a_hand_edited_file_is_refused_at_its_line_and_kept(case: str, workspace: Workspace, sweetspot: Sweetspot, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, field = HAND_MADE[case]
    path = workspace.recipes / "broken.yaml"
    whole = f"# mine\n\n{text}\n" if not text.startswith("  ") else f"# mine\nmethod:\n{text}\n"
    path.write_text(whole, encoding="utf-8")
    for words in (("check", "broken"), ("estimate", "broken"), ("fit", "broken", "--apply"), ("new", "copy", "--from", "broken")):
        code, out, err = sweetspot("recipe", *words)
        assert (code, out) == (2, "") and len(err.splitlines()) == 2 and "broken.yaml, line " in err and field in err, (words, err[:300])
    assert path.read_text(encoding="utf-8") == whole and not (tmp_path / "pwned").exists()
    write_draft(workspace, "broken", whole)
    assert read_draft(workspace, "broken") == whole, "the page keeps what was typed, right or wrong"


def test_ten_megabytes_are_refused_at_once_and_kept(workspace: Workspace, sweetspot: Sweetspot) -> None:
    path = workspace.recipes / "huge.yaml"
    whole = "title: x\n" + "# filler\n" * 1_200_000
    path.write_text(whole, encoding="utf-8")
    assert path.stat().st_size > 10 * LARGEST_BYTES
    code, out, err = sweetspot("recipe", "check", "huge")
    assert (code, out) == (2, "") and "huge.yaml, line 111112 (title): This is far too large for a recipe" in err
    assert path.stat().st_size == len(whole)


def test_presets_are_listed_with_their_use(sweetspot: Sweetspot) -> None:
    said = json.loads(sweetspot("recipe", "presets", "--json")[1])["presets"]
    assert len(said) == 22 and all(len(preset["about"]) > 60 for preset in said)
