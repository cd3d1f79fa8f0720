"""A class: workspaces that stay apart, base models that are shared, the fair queue, and each student's share of the machine."""

from __future__ import annotations

import fcntl
import json
import random
import stat
import threading
from pathlib import Path

import pytest

from core.chat.client import Answers
from core.chat.device import jobs_at_device
from core.chat.endpoint import read_endpoint
from core.chat.handle import chat_folder, worker_folder
from core.chat.request import Sampled
from core.classroom import limits
from core.classroom.limits import check_disk, check_memory, used_bytes
from core.classroom.place import class_root, member_of, models_home, student_of, student_workspace
from core.classroom.queue import ClassQueue, Entry, expected_starts, fair_order, place_in_queue
from core.classroom.room import Classroom, new_code, same_code, student_slug
from core.data.import_job import start_import
from core.data.library import list_datasets, load_dataset
from core.errors import StudioError
from core.jobs.folder import create_job
from core.jobs.launch import start_job, wait_for_job
from core.jobs.queue import hold_device
from core.models.catalogue import find_base, find_model, list_models
from core.recipe.files import recipe_path
from core.roots import ROOTS, check_path, check_source, read_roots
from core.runs import find_run
from core.workspace import Workspace


@pytest.fixture
def room(workspace: Workspace) -> Classroom:
    return Classroom.open(workspace)


@pytest.fixture
def two(room: Classroom) -> tuple[Workspace, Workspace]:
    return tuple(room.workspace_of(room.join(name)[0].slug) for name in ("Ana", "Ben"))


def rows_file(folder: Path, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}) + "\n", "utf-8")
    return path


@pytest.mark.parametrize(("name", "slug"), [("Ana Li", "ana-li"), ("  ANA   li ", "ana-li"), ("Bob-2", "bob-2")])
def test_plain_names_become_folders(name: str, slug: str) -> None:
    assert student_slug(" ".join(name.split())) == slug


def test_names_of_every_script_become_different_folders() -> None:
    names = ["小明", "小红", "José", "Jose", "Öz", "Oz", "../../etc", "_teacher", "Ana", "a" * 40, "‮evil", "con", "😀"]
    slugs = [student_slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(slug[0].isalnum() and "/" not in slug and ".." not in slug for slug in slugs)


@pytest.mark.parametrize("name", ["", "   ", "a" * 41, "a\x00b", "a\u202eb"])
def test_names_nobody_can_have_are_refused_in_words(room: Classroom, name: str) -> None:
    with pytest.raises(StudioError, match="cannot be a name"):
        room.join(name)
    assert room.students() == []


def test_code_brings_a_student_back_and_is_kept_as_a_hash(room: Classroom) -> None:
    student, code = room.join("Ana")
    path = room.folder / "ana" / "student.json"
    assert code not in path.read_text(encoding="utf-8") and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert room.enter("ana", f" {code[:4]}-{code[4:].lower()} ").slug == "ana"
    assert room.enter("ana", new_code()) is None and room.enter("nobody", code) is None and room.enter("", "") is None
    with pytest.raises(StudioError, match="in the class already"):
        room.join("ANA")
    renewed = room.renew_code("ana")
    assert room.enter("ana", code) is None and room.enter("ana", renewed) == room.student("ana")
    assert student.name == "Ana" and same_code("abcd efgh", "ABCDEFGH") and not same_code("", "ABCDEFGH")


def test_two_who_take_one_name_at_once_do_not_share(room: Classroom) -> None:
    outcomes: list[str] = []

    def join() -> None:
        try:
            room.join("Ana")
            outcomes.append("in")
        except StudioError:
            outcomes.append("taken")

    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in", "taken", "taken", "taken"]


def test_class_is_told_from_the_disk_alone(room: Classroom, two: tuple[Workspace, Workspace], tmp_path: Path) -> None:
    ana, _ = two
    assert class_root(ana) == room.workspace.root == class_root(room.workspace)
    assert (member_of(ana), member_of(room.workspace)) == ("ana", "_teacher")
    other = Workspace.open(tmp_path / "other")
    assert class_root(other) is None and models_home(other) == other


def test_base_models_are_shared_without_copies(room: Classroom, two: tuple[Workspace, Workspace], tiny_model: Path) -> None:
    shared = room.workspace.models / "tiny"
    shared.symlink_to(tiny_model)
    real = room.workspace.models / "real"
    real.mkdir()
    for path in tiny_model.iterdir():
        (real / path.name).write_bytes(path.read_bytes())
    ana, ben = (room.workspace_of(slug) for slug in ("ana", "ben"))
    assert "real" in [name for name, _, _ in list_models(ana)]
    assert find_base(ana, "real") == find_base(ben, "real") == real, "one folder, so that one process loads it once"
    assert used_bytes(ana.root) < 10_000
    (ana.models / "own").mkdir()
    assert not (ben.models / "own").exists()
    for path in real.iterdir():
        path.unlink()
    real.rmdir()
    room.workspace_of("ana")
    assert not (ana.models / "real").is_symlink(), "a link to nothing is taken away"


def test_no_student_comes_to_the_data_of_another(two: tuple[Workspace, Workspace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By every name and path that a page takes: dataset, run, model, recipe, file, link."""
    ana, ben = two
    monkeypatch.setenv(ROOTS, "")
    secret = rows_file(ben.root, "secret.jsonl")
    (ben.recipes / "mine.yaml").write_text("title: mine\n", encoding="utf-8")
    (ben.runs / "r1").mkdir()
    for reference in ("../ben/datasets/x", str(ben.datasets), "../../ben"):
        with pytest.raises(StudioError):
            load_dataset(ana, reference)
        with pytest.raises(StudioError):
            find_run(ana, reference)
    check_source(ana, "")  # an empty field names nothing
    check_source(ana, "owner/name")
    for source in (str(secret), "../ben/secret.jsonl", "nothing/../../ben/secret.jsonl", f"{ana.root}/../ben/secret.jsonl", str(ben.root)):
        with pytest.raises(StudioError, match="outside the folders"):
            start_import(ana, source, "stolen")
    for source in (str(ben.models), f"{ana.root}/../ben/models", str(tmp_path), "/nothing/there"):
        with pytest.raises(StudioError, match="outside the folders"):
            find_base(ana, source)
    for reference in ("../ben/runs/r1@3", f"{ben.runs}/r1@3"):
        with pytest.raises(StudioError):
            find_model(ana, reference)
    with pytest.raises(StudioError, match="outside the folders"):
        recipe_path(ana, str(ben.recipes / "mine.yaml"))
    (ana.root / "link").symlink_to(ben.root)
    with pytest.raises(StudioError, match="outside the folders"):
        check_path(ana, ana.root / "link" / "secret.jsonl")
    assert list_datasets(ana) == [] and not list(ana.jobs.iterdir())


def test_folders_named_at_the_start_may_be_read(two: tuple[Workspace, Workspace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    monkeypatch.setenv(ROOTS, ":".join(read_roots([given])))
    assert check_path(two[0], given / "x.jsonl") == given / "x.jsonl"
    with pytest.raises(StudioError, match="outside"):
        check_path(two[0], given / ".." / "x.jsonl")
    with pytest.raises(StudioError, match="not a folder"):
        read_roots([tmp_path / "nothing"])
    monkeypatch.delenv(ROOTS)
    assert check_path(two[0], tmp_path) == tmp_path, "whoever types at the machine's own command line may read its files anyway"


def entry(member: str, number: int, started: float | None = None, device: str = "cpu", kind: str = "train") -> Entry:
    return Entry(member=member, job=f"j{number}", kind=kind, device=device, asked=float(number), started=started)


def test_turns_go_round_however_many_jobs_one_student_asks_for() -> None:
    greedy = [entry("ana", number) for number in range(5)]
    order = [found.member for found in fair_order([*greedy, entry("ben", 10), entry("cem", 11)], {})]
    assert order == ["ana", "ben", "cem", "ana", "ana", "ana", "ana"]
    served = {"ana": 100.0, "ben": 50.0}
    order = [found.member for found in fair_order([entry("ana", 1), entry("ben", 2), entry("cem", 3)], served)]
    assert order == ["cem", "ben", "ana"], "who has gone without for longest is next"


def test_teacher_comes_before_the_turns_and_who_runs_comes_last() -> None:
    entries = [entry("ana", 1, started=1.0), entry("ana", 2), entry("ben", 3), entry("cem", 4)]
    assert [found.key for found in fair_order(entries, {})] == ["ben~j3", "cem~j4", "ana~j2"]
    assert [found.key for found in fair_order(entries, {}, ["cem~j4", "gone~j9"])] == ["cem~j4", "ben~j3", "ana~j2"]


def test_nobody_waits_for_two_turns_of_another() -> None:
    """Simulated: whoever asks again at once, between two jobs of one student every other waiting student has had one."""
    rng = random.Random(7)
    served: dict[str, float] = {}
    waiting = [entry(rng.choice("abcdef"), number) for number in range(60)]
    history: list[tuple[str, set[str]]] = []
    for clock in range(60):
        chosen = fair_order(waiting, served)[0]
        history.append((chosen.member, {found.member for found in waiting}))
        waiting.remove(chosen)
        served[chosen.member] = 1000.0 + clock
    for number, (member, _) in enumerate(history):
        later = [at for at in range(number + 1, len(history)) if history[at][0] == member]
        if later:
            others = history[later[0]][1] - {member}
            assert others <= {found for found, _ in history[number + 1:later[0]]}


def test_expected_starts_add_up_per_device_and_say_when_they_cannot() -> None:
    running = entry("ana", 1, started=100.0)
    order = [entry("ben", 2), entry("cem", 3, kind="judge"), entry("dan", 4), entry("eva", 5, device="cuda:0")]
    starts = expected_starts([running, *order], order, {"train": 60.0, "judge": 10.0}, now=130.0)
    assert [starts[found.key] for found in order] == [30.0, 90.0, 100.0, 0.0]
    starts = expected_starts([running, *order], order, {"train": 60.0}, now=130.0)
    assert [starts[found.key] for found in order] == [30.0, 90.0, None, 0.0], "nobody knows how long a judging takes here"
    assert expected_starts([running], [], {"train": 60.0}, now=900.0) == {}


class Waiter(threading.Thread):
    """A job that waits for the device as its worker does, in a thread."""

    def __init__(self, workspace: Workspace, number: int, log: list[str], may_end: threading.Event) -> None:
        super().__init__(daemon=True)
        self.job = create_job(workspace.jobs / f"job-{number}", "train", {})
        self.workspace, self.log, self.may_end, self.cancelled = workspace, log, may_end, False
        self.began = threading.Event()
        self.start()

    def run(self) -> None:
        with hold_device(self.workspace, self.job, lambda: self.cancelled) as is_ours:
            if is_ours:
                self.log.append(self.workspace.root.name)
                self.began.set()
                self.may_end.wait(20)


def wait_until(condition, seconds: float = 15.0) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_class_shares_its_device_in_turns(room: Classroom, two: tuple[Workspace, Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.classroom.queue._POLL_SECONDS", 0.01)
    ana, ben = two
    log: list[str] = []
    end = threading.Event()
    queue = ClassQueue(room.workspace.root)
    first = Waiter(ana, 1, log, end)
    assert first.began.wait(15)
    second = Waiter(ana, 2, log, end)
    third = Waiter(ana, 3, log, end)
    wait_until(lambda: len(queue.waiting()) == 2)
    fourth = Waiter(ben, 4, log, end)
    wait_until(lambda: len(queue.waiting()) == 3)
    assert queue.waiting()[0].member == "ben"
    place = place_in_queue(ana, second.job)
    assert place.before == 1 and place.seconds is None and place_in_queue(ana, first.job) is None
    queue.pause(True)
    end.set()
    first.join(15)
    assert log == ["ana"] and not fourth.began.wait(0.1), "nothing begins while the teacher has paused"
    queue.put_first(f"ana~{third.job.id}")
    third_first = queue.waiting()[0].job
    assert third_first == third.job.id
    second.cancelled = True
    second.join(15)
    queue.pause(False)
    third.join(15)
    fourth.join(15)
    assert log == ["ana", "ana", "ben"]
    assert queue.entries() == [] and not list((queue.folder / "entries").iterdir())
    assert len((queue.folder / "durations.jsonl").read_text().splitlines()) == 3


def test_entry_of_a_killed_worker_holds_nobody_up(room: Classroom, two: tuple[Workspace, Workspace]) -> None:
    queue = ClassQueue(room.workspace.root)
    path = queue.folder / "entries" / "ana~j1.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(entry("ana", 1).model_dump()), encoding="utf-8")
    assert queue.entries() == []
    with path.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert [found.key for found in queue.entries()] == ["ana~j1"]


def test_share_of_the_disk_is_a_sentence_not_a_crash(room: Classroom, two: tuple[Workspace, Workspace],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    ana, ben = two
    monkeypatch.setattr(limits, "_MEASURE_SECONDS", 0.0)
    room.change(disk_bytes=10_000_000)
    (ana.root / "big").write_bytes(b"")
    with (ana.root / "big").open("r+b") as stream:
        stream.truncate(10_000_001)
    with pytest.raises(StudioError, match=r"share of the disk is used up: 0\.01 of 0\.01 GB"):
        create_job(ana.jobs / "j", "train", {})
    assert not (ana.jobs / "j").exists()
    create_job(ben.jobs / "j", "train", {})
    create_job(room.workspace.jobs / "j", "train", {})
    with pytest.raises(StudioError, match="share of the disk"):
        check_disk(ben, coming_bytes=11_000_000)


def test_job_that_takes_too_much_memory_ends_with_a_sentence(room: Classroom, two: tuple[Workspace, Workspace]) -> None:
    ana, _ = two
    room.change(memory_bytes=100_000_000)
    with pytest.raises(StudioError, match="more memory than one student"):
        check_memory(ana)  # this test's process is larger than that
    check_memory(room.workspace)


def test_worker_over_its_share_fails_with_the_sentence(room: Classroom, two: tuple[Workspace, Workspace], tiny_model: Path) -> None:
    ana, _ = two
    room.change(disk_bytes=10_000_000)
    job = create_job(ana.jobs / "20260101-000000-import-x-0000", "import", {
        "source": str(rows_file(ana.root)), "is_set": False, "dataset": "x", "shown_name": None, "subset": None, "split": None,
        "is_upload": False, "reading": {"layout": None, "columns": {}, "group": "general"}})
    with (ana.root / "big").open("wb") as stream:
        stream.truncate(10_000_001)
    start_job(job)
    with pytest.raises(StudioError, match="share of the disk"):
        wait_for_job(job)


def test_class_has_one_chat_process_and_everybody_their_own_talks(room: Classroom, two: tuple[Workspace, Workspace]) -> None:
    ana, ben = two
    assert worker_folder(ana) == worker_folder(ben) == worker_folder(room.workspace) == chat_folder(room.workspace)
    assert chat_folder(ana) != chat_folder(ben), "what was said lies with whoever said it"
    asked = Answers(ana, ["real"], [[{"role": "user", "content": "Hi"}]], Sampled())
    body = json.loads(asked._body())
    assert body["member"] == "ana" == student_of(ana) and student_of(room.workspace) == ""
    assert student_workspace(room.workspace, "ana") == ana
    for wrong in ("../..", "/etc", "ana/../ben"):
        with pytest.raises(StudioError):
            student_workspace(room.workspace, wrong)


def test_chat_hears_of_jobs_of_the_whole_class(room: Classroom, two: tuple[Workspace, Workspace]) -> None:
    ana, ben = two
    job = create_job(ben.jobs / "20260101-000000-judge-x-0000", "judge", {}, "cuda:0")
    assert [found.id for found, _ in jobs_at_device(ana, "cuda")] == [job.id] == [found.id for found, _ in jobs_at_device(room.workspace)]


def test_visitor_cannot_send_the_server_to_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_endpoint("endpoint:http://10.0.0.1/v1#m").model == "m"
    monkeypatch.setenv("SWEETSPOT_GATE", "share")
    monkeypatch.setenv("SWEETSPOT_ENDPOINT_URL", "http://127.0.0.1:8000/v1/")
    assert read_endpoint("endpoint:http://127.0.0.1:8000/v1#m").url == "http://127.0.0.1:8000/v1"
    for address in ("http://169.254.169.254/latest#m", "http://127.0.0.1:22/v1#m", "http://127.0.0.1:8000/v1/../x#m"):
        with pytest.raises(StudioError, match="only the endpoint"):
            read_endpoint(f"endpoint:{address}")
