"""Disk full under the work itself: training, judging, merging, converting. What was there is whole, and the work can be done after."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from core.errors import StudioError
from core.jobs.folder import JobState, create_job
from core.lesson import merge_job_of
from core.models.catalogue import list_models
from core.runs import Run
from core.train.create import create_run
from core.workspace import Workspace, read_jsonl
from tests.core.conftest import PAGE, Fill, Writers, listing, refuse_until_it_fits, save_tiny_dataset, tiny_recipe
from tests.core.test_killed import Silent, train_in_a_fork, what_is_left


@pytest.fixture
def trained(small: tuple[Workspace, Fill], tiny_model) -> tuple[Workspace, Fill, Run]:
    """A finished training of the tiny model on the small file system; the base lies there too."""
    workspace, fill = small
    shutil.copytree(tiny_model, workspace.models / "tiny")
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe("tiny"), "whole")
    train_in_a_fork(workspace, run)
    run.write_state(JobState(kind="train", state="finished", created=1.0))
    return workspace, fill, run


def test_a_training_goes_on_to_the_same_numbers_when_there_is_room_again(trained, record_property):
    from core.train.worker import Training

    workspace, fill, whole = trained
    run = create_run(workspace, whole.recipe(), "starved")
    for pages in (0, 8, 30, 60, 100, 200, 400, 800):
        fill(pages * PAGE)
        try:
            Training(workspace, run, Silent()).run_to_end()
            break
        except StudioError as error:
            assert "disk is full" in str(error)
        assert all((one.folder / "adapter_model.safetensors").exists() for one in run.checkpoints())
        assert not [path for path in run.folder.rglob(".*") if path.is_file() or path.suffix == ".partial"]
    assert pages >= 60, "it broke off at least three times"
    assert what_is_left(run) == what_is_left(whole)
    record_property("injections", (0, 8, 30, 60, 100, 200, 400, 800).index(pages))
    record_property("figure", f"all {len(run.metrics())} losses and {len(run.checkpoints())} adapters equal")


def test_a_judging_goes_on_where_it_broke_off(trained, record_property):
    from core.judge.conclude import write_verdict
    from core.judge.probes import probes_of
    from core.judge.worker import judge_run

    workspace, fill, run = trained
    injections = 0
    for pages in (0, 1, 2, 4, 8, 64):
        fill(pages * PAGE)
        try:
            judge_run(workspace, run, Silent())
            break
        except StudioError as error:
            assert "disk is full" in str(error) and not (run.folder / "verdict.json").exists()
            injections += 1
    assert injections >= 2
    answers = [(record["step"], record["probe"]) for record in run.answers()]
    assert len(answers) == len(set(answers)) == 4 * 5 and run.verdict()["pick"]["step"] in (2, 4, 6)
    dataset, probes = probes_of(workspace, run)
    before = listing(run.folder)
    injections += refuse_until_it_fits({"verdict": lambda: write_verdict(run, dataset, probes, [0, 2, 4, 6])}, workspace.root, fill)
    assert listing(run.folder).keys() == before.keys() and len(read_jsonl(run.folder / "scores.jsonl")) == 4
    record_property("injections", injections)
    record_property("figure", f"{len(answers)} answers, each once")


def test_what_makes_models_and_files_of_them_leaves_all_as_it_was(trained, tiny_model, tmp_path, monkeypatch, record_property):
    import torch

    from core.chat.stacked import Adapter
    from core.convert.gguf_job import gguf_job
    from core.convert.publish_job import publish_job, publish_job_for
    from core.convert.split import split_job
    from core.convert.xtuner_run import convert_job
    from core.judge.strengths import make_view
    from core.merge.combine import combine
    from core.merge.worker import merge_job
    from core.models.add import add_job
    from core.train.model import prepare_model
    from core.train.snapshots import save_snapshot

    workspace, fill, run = trained
    # It would refuse before anything is written.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12, total=10**12, used=0))
    model = prepare_model(run.recipe(), tiny_model, "cpu")
    weights = [(name, value.detach()) for name, value in model.named_parameters() if value.requires_grad]
    first, last = (Adapter(str(one.step), one.folder) for one in (run.checkpoints()[0], run.checkpoints()[-1]))
    layers = {"A": torch.ones(4, 64), "B": torch.ones(64, 4)}
    (tmp_path / "xtuner").mkdir()
    torch.save({"state_dict": {f"llm.base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.default.weight": value
                               for side, value in layers.items()}}, tmp_path / "xtuner/iter_5.pth")
    merging = merge_job_of(workspace, f"{run.id}@6", "merged")
    publishing = publish_job_for(workspace, f"{run.id}@last", "me/mine", dry_run=True)

    def asked(kind: str, **spec: object):
        return create_job(workspace.jobs / f"{kind}-job", kind, spec)

    gguf = asked("gguf", model="tiny", name="tiny", form="f16", target=str(workspace.root / "tiny-f16"), system=None)
    split = asked("split", model="tiny", name="pieces", shard_bytes=100_000)
    converting = asked("convert-xtuner", source=str(tmp_path / "xtuner"), name="course", base="tiny")
    adding = asked("add-model", kind_of_source="folder", place=str(tiny_model), name="copied", copy=True)
    writers: Writers = {
        "snapshot": lambda: save_snapshot(run.folder, 8, model, iter(weights), tiny_model),
        "merged weights": lambda: merge_job(workspace, merging, Silent()),
        "combined adapters": lambda: combine([first, last], None, "average", workspace.root / "combined"),
        "GGUF": lambda: gguf_job(workspace, gguf, Silent()),
        "shards": lambda: split_job(workspace, split, Silent()),
        "XTuner's checkpoints": lambda: convert_job(workspace, converting, Silent()),
        "folder to publish": lambda: publish_job(workspace, publishing, Silent()),
        "copy of a model": lambda: add_job(workspace, adding, Silent()),
    }
    injections = refuse_until_it_fits(writers, workspace.root, fill)
    assert {"merged", "pieces", "copied"} <= {name for name, _, _ in list_models(workspace)}
    for pages in (0, 1, 2, 4):
        fill(pages * PAGE)
        with pytest.raises(StudioError, match="disk is full"):
            make_view(run, run.checkpoints()[0])
    fill(200 * PAGE)
    view = make_view(run, run.checkpoints()[0])  # goes on with the strengths that it has made
    assert all((one.folder / "adapter_config.json").exists() for one in view.checkpoints())
    record_property("injections", injections + 4)
    record_property("figure", f"{len(writers) + 1} writers, no file changed by an attempt that broke off")
