"""Room, trash, prune, archives and migrations: what goes comes back, what is in use stays, what travels arrives whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import time
from pathlib import Path

import pytest

from core.data.library import delete_dataset, load_dataset
from core.errors import StudioError
from core.housekeeping import uses
from core.housekeeping.archive_reading import import_archive
from core.housekeeping.archive_writing import export_run, export_workspace
from core.housekeeping.prune import prune, read_room, what_may_go
from core.housekeeping.room import freed_bytes, used_bytes
from core.housekeeping.trash import empty_trash, find_thrown, list_trash, restore, throw_away, trash_folder
from core.jobs.folder import JobState, create_job
from core.jobs.process import ProcessIdentity
from core.migrations.run import bring_up_to_date
from core.migrations.steps import STEPS, VERSION
from core.recipe.files import load_recipe
from core.runs import Run, find_run, list_runs
from core.train.create import create_run
from core.train.steer import delete_run
from core.workspace import Workspace, read_json, write_json, write_text
from tests.core.conftest import save_tiny_dataset, tiny_recipe


@pytest.fixture
def made(workspace, tiny_model) -> Run:
    """A finished run of the tiny model with two checkpoints that share a file, and the state for a resume."""
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model), "made")
    for step in (2, 4):
        folder = run.folder / "checkpoints" / f"{step:06d}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(os.urandom(40_000))
    (run.folder / "checkpoints/000002/tokenizer.json").write_bytes(b"t" * 50_000)
    os.link(run.folder / "checkpoints/000002/tokenizer.json", run.folder / "checkpoints/000004/tokenizer.json")
    (run.folder / "resume/000004").mkdir(parents=True)
    write_json(run.folder / "resume/000004/step.json", {"step": 4, "fit": {"tokens": 64, "rows": 2}})
    (run.folder / "resume/000004/state-0000.safetensors").write_bytes(os.urandom(90_000))
    run.write_state(JobState(kind="train", state="finished", created=time.time()))
    return run


def end(run: Run, state: str) -> None:
    run.write_state(JobState(kind="train", state=state, created=time.time()))


def test_hard_links_count_once_and_only_when_the_last_name_goes(made):
    both, one = made.folder / "checkpoints", made.folder / "checkpoints/000002"
    assert used_bytes([both]) == 4096 * (10 + 10 + 13) == freed_bytes([both])
    assert freed_bytes([one]) == 4096 * 10, "the tokenizer stays for the other checkpoint"


def test_a_deleted_run_lies_in_the_trash_and_comes_back_whole(workspace, made):
    before = {path.relative_to(made.folder): path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    size = delete_run(made)
    assert list_runs(workspace) == [] and size > 200_000
    thrown = find_thrown(workspace, "made")
    assert (thrown.origin, thrown.freed_bytes) == (f"runs/{made.id}", size)
    assert restore(workspace, thrown) == made.folder and list_trash(workspace) == []
    assert {path.relative_to(made.folder): path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before
    delete_run(made)
    free_before = read_room(workspace).trash
    assert empty_trash(workspace) == free_before == size and list(trash_folder(workspace).iterdir()) == []


def test_the_trash_never_overwrites_and_never_leaves_the_workspace(workspace, tmp_path):
    for _ in range(2):
        save_tiny_dataset(workspace)
        delete_dataset(workspace, "tiny")
    first, second = list_trash(workspace)
    restore(workspace, first)
    with pytest.raises(StudioError, match="exists already"):
        restore(workspace, second)
    with pytest.raises(StudioError, match="2 things"):
        throw_away(workspace, workspace.datasets / "tiny")
        find_thrown(workspace, "tiny")
    for origin in ("%2Fetc%2Fx", "cache%2Fx", "runs%2F..%2F..%2Fx"):
        path = trash_folder(workspace) / f"{origin}~20260101-000000-abcd"
        path.mkdir()
        with pytest.raises(StudioError, match="where it lay"):
            restore(workspace, find_thrown(workspace, "20260101-000000-abcd"))
        path.rmdir()


def test_what_is_in_use_is_refused_with_who_uses_it(workspace, made, monkeypatch):
    job = create_job(workspace.jobs / "j", "judge", {"run": made.id})
    job.write_state(JobState(kind="judge", state="running", created=time.time(), process=ProcessIdentity.own()))
    with pytest.raises(StudioError, match="in use: the job j works with it"):
        delete_run(made)
    job.write_state(JobState(kind="judge", state="finished", created=time.time()))
    monkeypatch.setattr(uses, "chat_folders", lambda _: {made.folder})
    with pytest.raises(StudioError, match="the chat or a server holds it"):
        delete_run(made)
    assert made.folder.exists() and "正在使用中" in str(StudioError("{name} is in use: {reason}.", "x", name=1, reason=2).problem.to("zh"))
    made.write_state(JobState(kind="train", state="running", created=time.time(), process=ProcessIdentity.own()))
    assert [str(text) for text in uses.uses_of(workspace, made.folder)][0] == "it is still at work"
    assert any("works with it" in str(text) for text in uses.uses_of(workspace, workspace.datasets / "tiny"))


def test_prune_takes_what_nobody_needs_and_names_who_needs_the_rest(workspace, made):
    save_tiny_dataset(workspace, "spare")
    gone = workspace.runs / ".half.999999999-0123abcd.partial"
    gone.mkdir()
    mine = workspace.runs / f".half.{os.getpid()}-0123abcd.partial"
    mine.mkdir()
    old = create_job(workspace.jobs / "old", "replay", {})
    old.write_state(JobState(kind="replay", state="finished", created=1.0, ended=1.0))
    young = create_job(workspace.jobs / "young", "replay", {})
    young.write_state(JobState(kind="replay", state="finished", created=time.time(), ended=time.time()))
    found = what_may_go(workspace, ("leftover", "resume", "job", "failed_run", "dataset"))
    going = {candidate.path.name for candidate in found if candidate.kept_by is None}
    assert going == {gone.name, "resume", "old", "spare"}
    assert [str(candidate.kept_by) for candidate in found if candidate.path.name == "tiny"] == [f"the run {made.id} learned from it"]
    size = freed_bytes([candidate.path for candidate in found if candidate.kept_by is None])
    end(made, "stopped")  # since it was listed, somebody wants to go on with it: its state is not finished any more
    made.write_state(JobState(kind="train", state="running", created=time.time(), process=ProcessIdentity.own()))
    assert {Path(thrown.origin).name for thrown in prune(workspace, found)} == going - {"resume"}
    assert (made.folder / "resume").exists() and mine.exists() and young.folder.exists()
    assert 0 < empty_trash(workspace) < size


def test_a_run_travels_with_its_data_and_base_and_every_mention_follows(workspace, made, tiny_model, tmp_path):
    end(made, "stopped")
    manifest = export_run(workspace, made, tmp_path / "made.tar.gz", with_base=True)
    assert sum("same_as" in entry for entry in manifest["files"].values()) == 1, "one file with two names is packed once"
    other = Workspace.open(tmp_path / "other")
    save_tiny_dataset(other, "tiny2")
    (other.datasets / "tiny2").rename(other.datasets / "tiny")
    write_text(other.datasets / "tiny/card.json", (other.datasets / "tiny/card.json").read_text().replace('"sha256": "', '"sha256": "0'))
    for number in range(2):
        placed = {(entry.part, entry.name): entry for entry in import_archive(other, tmp_path / "made.tar.gz")}
        here = Run(other.runs / placed[("runs", made.id)].here)
        assert placed[("models", tiny_model.name)].is_known == bool(number)
        recipe = here.recipe()
        assert recipe.model.source == tiny_model.name and (other.models / tiny_model.name / "model.safetensors").exists()
        assert {source.dataset for source in recipe.data.sources} == {placed[("datasets", "tiny")].here} != {"tiny"}
        assert load_dataset(other, placed[("datasets", "tiny")].here).rows() == load_dataset(workspace, "tiny").rows()
        assert here.state().state == "stopped" and [checkpoint.step for checkpoint in here.checkpoints()] == [2, 4]
        assert (here.folder / "checkpoints/000002/tokenizer.json").stat().st_nlink == 2
    assert len(list_runs(other)) == 2 and not list(other.cache.glob("import-*"))


def test_a_workspace_travels_without_what_any_machine_makes_itself(workspace, made, tmp_path):
    (workspace.models / "link").symlink_to(tmp_path)
    lesson = create_job(workspace.jobs / "lesson", "lesson", {"persona": {"name": "A"}})
    lesson.write_state(JobState(kind="lesson", state="finished", created=1.0))
    write_json(lesson.folder / "lesson.json", {"parts": {"train": {"folder": str(made.folder)}}})
    manifest = export_workspace(workspace, tmp_path / "all.tar")
    assert manifest["left_out"] == ["models/link"] and not any(name.startswith(("cache", "trash")) for name in manifest["files"])
    other = Workspace.open(tmp_path / "other")
    import_archive(other, tmp_path / "all.tar")
    assert find_run(other, "made").recipe() == made.recipe()
    assert read_json(other.jobs / "lesson/lesson.json")["parts"]["train"]["folder"] == str(other.runs / made.id)
    lesson.write_state(JobState(kind="lesson", state="running", created=1.0, process=ProcessIdentity.own()))
    with pytest.raises(StudioError, match="at work"):
        export_workspace(workspace, tmp_path / "again.tar")
    assert not (tmp_path / "again.tar").exists()


def crafted(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], manifest: dict | None = None) -> Path:
    files = {entry.name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for entry, data in members}
    manifest = {"format": 1, "workspace_version": VERSION, "kind": "workspace", "files": files} | (manifest or {})
    with tarfile.open(path, "w:gz") as archive:
        for entry, data in [*members, (tarfile.TarInfo("manifest.json"), json.dumps(manifest).encode())]:
            entry.size = len(data) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(data) if entry.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


@pytest.mark.parametrize(("entry", "words"), [
    (member("/etc/x"), "outside"), (member("../x/y"), "outside"), (member("runs/../../x"), "outside"), (member("cache/locks/x"), "outside"),
    (member("runs/a/.hidden"), "outside"), (member("runs/" + "a/" * 20 + "b"), "outside"), (member("runs/a\\b/c"), "outside"),
    (member("runs/a;reboot/x"), "outside"), (member("models/-rf/x"), "outside"), (member("datasets/$(id)/x"), "outside"),
    (member("recipes/a\nb.yaml"), "outside"), (member("models/a/x", tarfile.SYMTYPE, "/etc"), "no plain file"),
    (member("models/a/x", tarfile.LNKTYPE, "models/a/y"), "no plain file"),
    (member("models/a/x", tarfile.CHRTYPE), "no plain file"), (member("models/a/x", tarfile.FIFOTYPE), "no plain file")])
def test_an_archive_cannot_leave_the_workspace(workspace, tmp_path, entry, words):
    path = crafted(tmp_path / "x.tar.gz", [(member("models/a/ok.json"), b"{}"), (entry, b"data")])
    with pytest.raises(StudioError, match=words):
        import_archive(workspace, path)
    assert not any(workspace.models.iterdir()) and not list(workspace.cache.glob("import-*")) and not (tmp_path / "x").exists()


def test_an_archive_that_is_a_bomb_cut_off_or_changed_is_refused(workspace, made, tmp_path):
    bomb = crafted(tmp_path / "bomb.tar.gz", [(member("models/a/big"), b"\0" * 3_000_000)])
    assert bomb.stat().st_size < 20_000
    with pytest.raises(StudioError, match="more than there is room for"):
        import_archive(workspace, bomb, most_bytes=1_000_000)
    header = member("models/a/x")
    header.pax_headers = {"comment": "x" * 40_000_000}
    with pytest.raises(StudioError, match="header"):
        import_archive(workspace, crafted(tmp_path / "header.tar.gz", [(header, b"x")]))
    less = member("models/a/x")
    less.pax_headers = {"size": "-3000000"}  # would make room for more than there is
    with pytest.raises(StudioError):
        import_archive(workspace, crafted(tmp_path / "less.tar.gz", [(less, b"x"), (member("models/a/big"), b"\0" * 3_000_000)]),
                       most_bytes=1_000_000)
    twice = crafted(tmp_path / "twice.tar.gz", [(member("models/a/x"), b"1"), (member("models/a/x"), b"2")])
    with pytest.raises(StudioError, match="twice"):
        import_archive(workspace, twice)
    wrong = crafted(tmp_path / "wrong.tar.gz", [(member("models/a/x"), b"1")], {"files": {"models/a/x": {"sha256": "0" * 64, "bytes": 1}}})
    with pytest.raises(StudioError, match="SHA-256 differs"):
        import_archive(workspace, wrong)
    with pytest.raises(StudioError, match="newer"):
        import_archive(workspace, crafted(tmp_path / "new.tar.gz", [], {"workspace_version": VERSION + 1}))
    export_run(workspace, made, tmp_path / "made.tar")
    whole = (tmp_path / "made.tar").read_bytes()
    for cut in (0, 700, len(whole) // 2, len(whole) - 20_000):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(StudioError, match="no whole archive|no list of its contents"):
            import_archive(workspace, tmp_path / "cut.tar")
    (tmp_path / "noise.tar.gz").write_bytes(gzip.compress(b"noise" * 1000)[:-9])
    with pytest.raises(StudioError, match="no whole archive"):
        import_archive(workspace, tmp_path / "noise.tar.gz")
    assert not any(workspace.models.iterdir()) and len(list_runs(workspace)) == 1


def old_workspace(workspace: Workspace) -> None:
    (workspace.root / "version.json").unlink()


def test_step_1_recipes_of_the_first_version_name_their_devices_anew(workspace, tiny_model, made):
    recipe = {"title": "Old", "model": {"source": str(tiny_model)}, "data": {"sources": [{"dataset": "tiny"}]},
              "device": {"kind": "cpu", "deepspeed_stage": 3, "offload": True, "checkpointing": "auto"}, "early_stop": {"on_alert": "save"}}
    path = workspace.recipes / "old.yaml"
    write_text(path, json.dumps(recipe))
    with pytest.raises(StudioError):
        load_recipe(path)
    old_workspace(workspace)
    assert bring_up_to_date(workspace) == [path]
    device = load_recipe(path).device
    assert (device.zero, device.offload, device.checkpointing, load_recipe(path).early_stop.on_alert) == (3, "all", "off", "off")
    backup = next((workspace.root / "backups").glob("*-version-0")) / "recipes/old.yaml"
    assert json.loads(backup.read_text()) == recipe


def test_step_2_a_kept_state_without_its_micro_batches_can_be_gone_on_with(workspace, made):
    path = made.folder / "resume/000004/step.json"
    write_json(path, {"step": 4})
    old_workspace(workspace)
    assert bring_up_to_date(workspace) == [path]
    assert read_json(path) == {"step": 4, "fit": {"tokens": 2**62, "rows": 1}}


def test_step_3_a_verdict_names_the_steps_on_its_front(workspace, made):
    path = made.folder / "verdict.json"
    write_json(path, {"verdict": "recommended", "front": [{"step": 2, "hit": 1.0}, {"step": 4, "hit": 0.5}]})
    old_workspace(workspace)
    assert bring_up_to_date(workspace) == [path]
    assert read_json(path) == {"verdict": "recommended", "front": [2, 4]}


def test_an_archive_of_an_earlier_version_is_brought_up_to_date_as_it_is_taken_in(workspace, tiny_model, tmp_path):
    recipe = {"title": "Old", "model": {"source": str(tiny_model)}, "data": {"sources": [{"dataset": "tiny"}]},
              "device": {"kind": "cpu", "deepspeed_stage": 2, "offload": False, "checkpointing": "auto"}}
    contents = {"recipes/old.yaml": recipe, "runs/r/spec.json": {"kind": "train"}, "runs/r/resume/000002/step.json": {"step": 2},
                "runs/r/verdict.json": {"front": [{"step": 2}]}}
    files = [(member(name), json.dumps(data).encode()) for name, data in contents.items()]
    import_archive(workspace, crafted(tmp_path / "old.tar.gz", files, {"workspace_version": 0}))
    assert load_recipe(workspace.recipes / "old.yaml").device.zero == 2
    assert read_json(workspace.runs / "r/resume/000002/step.json")["fit"]["rows"] == 1
    assert read_json(workspace.runs / "r/verdict.json") == {"front": [2]}


def test_every_step_of_a_migration_has_a_test_and_finds_nothing_to_do_twice(workspace, tiny_model, made):
    """A step without a test of its own fails here."""
    own = [name for name in globals() if re.match(r"test_step_\d+_", name)]
    assert sorted(int(name.split("_")[2]) for name in own) == list(range(1, VERSION + 1))
    write_json(made.folder / "resume/000004/step.json", {"step": 4})
    write_json(made.folder / "verdict.json", {"front": [{"step": 2}]})
    old_workspace(workspace)
    assert len(bring_up_to_date(workspace)) == 2
    assert [list(step(workspace)) for step in STEPS] == [[]] * VERSION


def test_migration_waits_for_jobs_runs_once_and_refuses_what_is_newer(workspace, made):
    path = made.folder / "resume/000004/step.json"
    write_json(path, {"step": 4})
    old_workspace(workspace)
    made.write_state(JobState(kind="train", state="running", created=time.time(), process=ProcessIdentity.own()))
    assert bring_up_to_date(workspace) == [] and read_json(path) == {"step": 4}
    end(made, "stopped")
    assert Workspace.open(workspace.root) == workspace and "fit" in read_json(path)
    assert bring_up_to_date(workspace) == [] and read_json(workspace.root / "version.json") == {"version": VERSION}
    write_json(workspace.root / "version.json", {"version": VERSION + 1})
    with pytest.raises(StudioError, match="A newer Sweetspot wrote the workspace"):
        Workspace.open(workspace.root)
