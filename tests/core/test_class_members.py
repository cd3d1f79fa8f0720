"""Students leave a class and come back; a model that one of them uses stays; a run is shown to the class by its owner's word only."""

from __future__ import annotations

import fcntl
import json
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from core.classroom.limits import used_bytes
from core.classroom.queue import ClassQueue, Entry
from core.classroom.removal import belongings, bring_back, list_removed, remove_student
from core.classroom.room import Classroom
from core.classroom.sharing import find_shared, share_run, shared_ids, shared_runs, take_recipe
from core.errors import StudioError
from core.housekeeping import uses
from core.housekeeping.archive_reading import import_archive
from core.housekeeping.archive_writing import export_workspace
from core.housekeeping.prune import prune, read_room, what_may_go
from core.housekeeping.trash import empty_trash, find_thrown, list_trash, restore
from core.jobs.folder import JobState, create_job
from core.jobs.process import ProcessIdentity
from core.models.delete import delete_model
from core.recipe.files import find_recipe
from core.runs import Run, find_run
from core.train.create import create_run
from core.workspace import Workspace, read_json, write_json
from studio.cli import main
from tests.core.conftest import save_tiny_dataset, tiny_recipe
from tests.core.test_housekeeping import crafted


@pytest.fixture
def room(workspace: Workspace) -> Classroom:
    return Classroom.open(workspace)


@pytest.fixture
def ana(room: Classroom) -> Workspace:
    return room.workspace_of(room.join("Ana")[0].slug)


@pytest.fixture
def models(room: Classroom, tiny_model: Path, ana: Workspace) -> list[Path]:
    """Five base models of the class, all the same, each with another name."""
    names = ("by-name", "by-path", "by-link", "at-work", "spare")
    for name in names:
        shutil.copytree(tiny_model, room.workspace.models / name)
    room.workspace_of("ana")  # shows them to her
    save_tiny_dataset(ana)
    return [room.workspace.models / name for name in names]


def write_state(job: Run, state: str) -> None:
    job.write_state(JobState(kind="train", state=state, created=time.time(),
                             process=ProcessIdentity.own() if state == "running" else None))


def judged_run(workspace: Workspace, model: Path, name: str = "made") -> Run:
    """A finished run with a verdict, as far as sharing looks at one."""
    if not (workspace.datasets / "tiny").exists():
        save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(model), name)
    write_state(run, "finished")
    score = {"step": 2, "hits": 1, "identity_probes": 2, "leaks": 0, "other_probes": 3, "hit": 0.5, "leak": 0.0, "near_leak": 0.0,
             "fragments": 0.0, "facts_kept": None, "distinct": 1.0, "self_bleu": 0.1, "change": 0.0, "length_ratio": 1.0,
             "learned": 0.5, "kept": 1.0, "score": 2 / 3}
    text = {"template": "Because.", "values": {}}
    write_json(run.folder / "verdict.json", {
        "verdict": "compromise", "pick": score, "last": score, "runner_up": None, "breaches": [], "reason": text, "before": text,
        "after": text, "certainty": text, "rule_step": 2})
    return run


def test_prune_never_takes_a_model_that_a_student_uses(room: Classroom, ana: Workspace, models: list[Path]) -> None:
    by_name, by_path, by_link, at_work, spare = models
    for source in (Path(by_name.name), by_path, ana.models / by_link.name, Path(at_work.name)):
        run = create_run(ana, tiny_recipe(source), source.name)
        write_state(run, "running" if source.name == at_work.name else "finished")
    kept = {candidate.path.name: str(candidate.kept_by) for candidate in what_may_go(room.workspace, ("model",)) if candidate.kept_by}
    assert set(kept) == {"by-name", "by-path", "by-link", "at-work"}
    assert "of ana" in kept["by-name"] and "of ana" in kept["by-link"] and "works with it" in kept["at-work"]
    with pytest.raises(StudioError, match="in use: it is the base of the run .* of ana"):
        delete_model(room.workspace, "by-path")
    (candidate,) = [found for found in what_may_go(room.workspace, ("model",)) if not found.kept_by]
    assert candidate.path == spare
    write_state(create_run(ana, tiny_recipe(Path("spare")), "late"), "running")  # since it was listed, she has begun to use it
    assert prune(room.workspace, [candidate]) == [] and spare.is_dir()


def test_own_model_of_a_student_holds_none_of_the_class(room: Classroom, ana: Workspace, models: list[Path]) -> None:
    spare = models[-1]
    (ana.models / "spare").unlink()
    shutil.copytree(spare, ana.models / "spare")
    create_run(ana, tiny_recipe(Path("spare")), "own")
    assert uses.uses_of(room.workspace, spare) == [] and uses.uses_of(ana, ana.models / "spare")


def test_removed_student_lies_in_the_trash_and_comes_back_whole(room: Classroom, ana: Workspace, tiny_model: Path) -> None:
    _, code = room.join("Ben")
    run = judged_run(ana, tiny_model)
    before = {path.relative_to(ana.root): path.read_bytes() for path in ana.root.rglob("*") if path.is_file()}
    has = belongings(room, "ana")
    assert (has.runs, has.datasets, has.models) == (1, 1, 0) and has.freed_bytes > 10_000
    assert read_room(room.workspace).by_part["students"] > has.freed_bytes, "Ben has something too"
    remove_student(room, "ana")
    assert [student.slug for student in room.students()] == ["ben"] and not ana.root.exists()
    assert [(found.student.name, found.thrown.freed_bytes) for found in list_removed(room)] == [("Ana", has.freed_bytes)]
    for wrong in ("ana", "../ben", "nobody"):
        with pytest.raises(StudioError, match="Nobody of the class"):
            remove_student(room, wrong)
    assert bring_back(room, "ana").name == "Ana" and find_run(ana, run.id).state().state == "finished"
    after = {path.relative_to(ana.root): path.read_bytes() for path in ana.root.rglob("*") if path.is_file()}
    assert after == before and list_removed(room) == []
    remove_student(room, "ben")
    assert restore(room.workspace, find_thrown(room.workspace, "students/ben")).name == "ben", "the trash of Home does the same"
    assert room.enter("Ben", code) == room.student("ben")


def test_nobody_is_removed_while_something_of_theirs_is_at_work(room: Classroom, ana: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    job = create_job(ana.jobs / "j", "judge", {})
    for state in ("queued", "running", "stopping"):
        job.write_state(JobState(kind="judge", state=state, created=time.time(), process=ProcessIdentity.own()))
        with pytest.raises(StudioError, match="A job of Ana is at work: j"):
            remove_student(room, "ana")
    job.write_state(JobState(kind="judge", state="finished", created=time.time(), process=ProcessIdentity.own()))
    with pytest.raises(StudioError, match="at work"):
        remove_student(room, "ana")  # it says that it has ended, and its process is still there
    job.write_state(JobState(kind="judge", state="finished", created=time.time()))
    monkeypatch.setattr("core.classroom.removal.chat_folders", lambda _: {ana.runs / "r"})
    with pytest.raises(StudioError, match="holds a model of Ana"):
        remove_student(room, "ana")
    assert ana.root.is_dir() and list_trash(room.workspace) == []


def test_name_of_a_removed_student_may_be_taken_and_nothing_is_overwritten(room: Classroom, ana: Workspace) -> None:
    (ana.recipes / "first.yaml").write_text("title: first\n", encoding="utf-8")
    remove_student(room, "ana")
    second = room.workspace_of(room.join("Ana")[0].slug)
    assert not list(second.recipes.iterdir())
    with pytest.raises(StudioError, match="Somebody else is called Ana now"):
        bring_back(room, "ana")
    with pytest.raises(StudioError, match="exists already"):
        restore(room.workspace, list_removed(room)[0].thrown)
    remove_student(room, "ana")
    assert len(list_removed(room)) == 2
    empty_trash(room.workspace)
    with pytest.raises(StudioError, match="Nobody called ana lies in the trash"):
        bring_back(room, "ana")


def test_run_is_seen_by_others_only_while_its_owner_shares_it(room: Classroom, ana: Workspace, tiny_model: Path) -> None:
    ben = room.workspace_of(room.join("Ben")[0].slug)
    run, other = judged_run(ana, tiny_model), judged_run(ana, tiny_model, "kept")
    assert shared_runs(room) == []
    share_run(ana, run, True)
    share_run(ana, run, True)
    assert shared_ids(ana) == [run.id] and [(found.slug, found.run.id) for found in shared_runs(room)] == [("ana", run.id)]
    shared = find_shared(room, "ana", run.id)
    assert find_recipe(ben, take_recipe(shared, ben)) == run.recipe()
    with pytest.raises(StudioError, match="already a recipe"):
        take_recipe(shared, ben)
    for wrong in (("ana", other.id), ("ben", run.id), ("ana", f"../../ben/runs/{run.id}")):
        with pytest.raises(StudioError, match="not shared"):
            find_shared(room, *wrong)
    share_run(ana, run, False)
    with pytest.raises(StudioError, match="not shared"):
        find_shared(room, "ana", run.id)


def test_odd_lists_of_shared_runs_show_nothing_of_others(room: Classroom, ana: Workspace, tiny_model: Path) -> None:
    ben = room.workspace_of(room.join("Ben")[0].slug)
    secret, own = judged_run(ben, tiny_model), judged_run(ana, tiny_model)
    (ana.runs / "link").symlink_to(secret.folder)
    write_json(ana.root / "shared.json", {"runs": [f"../../ben/runs/{secret.id}", "link", secret.id, "gone", 7, own.id]})
    assert [found.run.id for found in shared_runs(room)] == [own.id]
    for broken in ({"runs": 3}, ["runs"], {}):
        write_json(ana.root / "shared.json", broken)
        assert shared_runs(room) == []
    with pytest.raises(StudioError, match="no verdict to show"):
        share_run(ana, create_run(ana, tiny_recipe(tiny_model), "new"), True)
    with pytest.raises(StudioError, match="no class"):
        share_run(Workspace.open(room.workspace.root.parent / "elsewhere"), own, True)
    assert read_json(ana.root / "shared.json") == {}


def test_what_snapshots_share_counts_once_in_a_student_s_share(ana: Workspace) -> None:
    before = used_bytes(ana.root)
    (ana.runs / "a").write_bytes(b"x" * 50_000)
    (ana.runs / "b").hardlink_to(ana.runs / "a")
    assert used_bytes(ana.root) == before + 50_000


def test_class_travels_with_its_students_and_without_their_codes(room: Classroom, ana: Workspace, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, room.workspace.models / "tiny")
    room.workspace_of("ana")
    run = judged_run(ana, Path("tiny"))
    _, code = room.join("小明")
    (empty,) = [student.slug for student in room.students() if student.slug != "ana"]
    manifest = export_workspace(room.workspace, tmp_path / "class.tar")
    assert f"students/ana/runs/{run.id}/verdict.json" in manifest["files"] and manifest["left_out"] == []
    assert not any("student.json" in name or name.startswith("students/ana/models") for name in manifest["files"])
    other = Workspace.open(tmp_path / "other")
    (other.models / "tiny").mkdir()  # the name is taken there, so the class's model gets another
    for number in (2, 3):
        placed = import_archive(other, tmp_path / "class.tar")
        there = Classroom(other)
        assert {student.name for student in there.students()} == {"Ana", "小明"}
        assert there.enter("小明", code) is None and list(there.workspace_of(empty).runs.iterdir()) == []
        here = next(entry.here for entry in placed if (entry.part, entry.name) == ("students/ana/runs", run.id))
        arrived = Run(there.workspace_of("ana").runs / here)
        assert arrived.verdict() == run.verdict() and arrived.recipe().model.source == f"tiny-{number}"
    assert len(list(there.workspace_of("ana").runs.iterdir())) == 2
    write_state(run, "running")
    with pytest.raises(StudioError, match="at work"):
        export_workspace(room.workspace, tmp_path / "again.tar")


@pytest.mark.parametrize("students", [{}, {"ana": "Ben"}, {"ana": "Ana", "../x": "../x"}, {"ana": "Ana", "": ""}])
def test_archive_names_no_student_wrongly(workspace: Workspace, tmp_path: Path, students: dict[str, str]) -> None:
    entry = tarfile.TarInfo("students/ana/recipes/x.yaml")
    path = crafted(tmp_path / "x.tar.gz", [(entry, b"title: x")], {"students": students})
    with pytest.raises(StudioError, match="differs|cannot be a name"):
        import_archive(workspace, path)
    assert not (workspace.root / "students").exists()


def test_commands_add_remove_and_bring_back(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["class", *arguments])
        assert (ended.value.code or 0) == code
        return "".join(capsys.readouterr())

    assert "is no class yet" in said("show", code=2)
    room = Classroom.open(workspace)
    codes = json.loads(said("add", "Ana Li", "小明", "--json"))["codes"]
    assert room.enter("小明", codes["小明"]) is not None
    assert "ana-li would go: 0 runs" in said("remove", "Ana Li", "--dry-run") and room.student("ana-li") is not None
    assert "`sweetspot class bring-back" in said("remove", "小明", "--yes") and len(room.students()) == 1
    assert json.loads(said("bring-back", "小明", "--json"))["name"] == "小明" and len(room.students()) == 2
    assert "Nobody of the class is called nobody" in said("remove", "nobody", "--yes", code=2)
    job = create_job(workspace.jobs / "j", "judge", {})
    entry = Entry(member="_teacher", job="j", kind="judge", device="cpu", asked=1.0)
    path = ClassQueue(workspace.root).folder / "entries" / f"{entry.key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(entry.model_dump_json(), encoding="utf-8")
    with path.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert json.loads(said("queue", "--pause", "--last", "_teacher~j", "--stop", "_teacher~j", "--json"))["paused"]
    assert (job.folder / "stop").exists()
    assert "No job called nobody~j waits" in said("queue", "--stop", "nobody~j", code=2)
