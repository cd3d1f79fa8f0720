"""The Class page, and what the class's core makes of workspaces full of runs."""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.classroom.handout import hand_out_dataset, hand_out_recipe
from core.classroom.queue import ClassQueue, Entry, job_of
from core.classroom.removal import remove_student
from core.classroom.room import Classroom
from core.classroom.sharing import share_run, shared_runs
from core.classroom.wall import leaderboard, read_wall, results_csv, write_results
from core.errors import StudioError
from core.jobs.folder import create_job
from core.runs import Run
from core.workspace import Workspace
from studio.launch import GATE
from studio.visitors import cookie_name, door, forget_door

ATTACK = "=1<img src=x onerror=alert(1)> [x](http://evil.example)"
ROOT = Path(__file__).resolve().parents[2]
Open = Callable[..., AppTest]


def by_hand() -> ModuleType:
    """`conftest.py` of this folder, which knows the files of a run."""
    if "runs_written_by_hand" not in sys.modules:
        spec = importlib.util.spec_from_file_location("runs_written_by_hand", Path(__file__).parent / "conftest.py")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules["runs_written_by_hand"]


@pytest.fixture
def room(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Classroom]:
    """A class of three: Ana has overfitted, Ben has kept everything, the third has an odd name and nothing yet."""
    monkeypatch.setenv(GATE, "class,share")
    forget_door()
    room = Classroom.open(workspace)
    for number, (name, kind) in enumerate((("Ana", "identity"), ("Ben", "replay"), (ATTACK[:40], None)), 1):
        student, _ = room.join(name)
        if kind:
            by_hand().write_run(room.workspace_of(student.slug), "alex", kind=kind, number=number)
    yield room
    forget_door()


@pytest.fixture
def sign_in(monkeypatch: pytest.MonkeyPatch, room: Classroom) -> Callable[..., None]:
    """`sign_in("student", "ana")` looks at the pages as that student does: through the cookie that the gate would have set."""
    def as_visitor(role: str | None, student: str = "") -> None:
        cookies = {cookie_name(): door().sessions.sign_in(role, student)} if role else {}
        monkeypatch.setattr(type(st.context), "cookies", property(lambda self: cookies))
    return as_visitor


def shown(app: AppTest) -> str:
    return by_hand().texts(app) + "\n".join(header.value for header in [*app.header, *app.title])


def test_wall_tells_how_everybody_stands(room: Classroom) -> None:
    ana, ben, odd = sorted(read_wall(room), key=lambda standing: standing.student not in ("ana",) and (standing.student != "ben") + 1)
    assert (ana.state, ana.step, len(ana.losses)) == ("finished", 15, 36)
    assert odd.state == "nothing" and odd.best is None
    assert ben.score > ana.score and [found.student for found in leaderboard([ana, odd, ben])] == ["ben", "ana"]
    assert 0 < ana.disk_bytes < 10_000_000


def test_broken_run_hides_nobody(room: Classroom) -> None:
    run = next((room.folder / "ana" / "runs").iterdir())
    for name in ("verdict.json", "recipe.yaml", "metrics.jsonl", "state.json"):
        (run / name).write_bytes(b'{"half')
    standings = {standing.student: standing for standing in read_wall(room)}
    assert len(standings) == 3 and standings["ana"].verdict is None and standings["ben"].verdict is not None


def test_results_are_one_table_without_formulas(room: Classroom) -> None:
    odd = next(student for student in room.students() if student.name.startswith("="))
    by_hand().write_run(room.workspace_of(odd.slug), "alex")
    lines = list(csv.DictReader(io.StringIO(results_csv(room))))
    assert len(lines) == 3 and {line["verdict"] for line in lines} <= {"recommended", "compromise", "not_learned"}
    assert all(not value.startswith(("=", "+", "-", "@")) for line in lines for value in line.values())


def test_zip_holds_results_and_no_weights_nor_what_a_link_points_to(room: Classroom, tmp_path: Path) -> None:
    run = next((room.folder / "ana" / "runs").iterdir())
    (run / "environment.json").unlink(missing_ok=True)
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    (run / "environment.json").symlink_to(secret)
    assert write_results(room, tmp_path / "all.zip") == 2
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        names = archive.namelist()
        assert "results.csv" in names and f"ana/{run.name}/verdict.json" in names
        assert not any("safetensors" in name or "student.json" in name for name in names)
        assert f"ana/{run.name}/environment.json" not in names


def test_hand_out_gives_copies_and_overwrites_nothing(room: Classroom) -> None:
    by_hand().made_dataset(room.workspace, "shared")
    by_hand().made_dataset(room.workspace_of("ana"), "shared", languages=("zh",))
    outcomes = {one.student: one.outcome for one in hand_out_dataset(room, "shared")}
    assert outcomes.pop("ana") == "has_another" and set(outcomes.values()) == {"given"}
    assert {one.outcome for one in hand_out_dataset(room, "shared", ["ben"])} == {"had_it"}
    assert (room.folder / "ben" / "datasets" / "shared" / "probes.jsonl").stat().st_ino != \
        (room.workspace.datasets / "shared" / "probes.jsonl").stat().st_ino
    assert {one.outcome for one in hand_out_recipe(room, "identity-lesson-cpu")} == {"given"}
    for wrong in ("../access/password", "nothing-of-this-name"):
        with pytest.raises(StudioError):
            hand_out_recipe(room, wrong)


def test_teacher_sees_the_wall_and_opens_a_matrix(room: Classroom, sign_in: Callable, open_app: Open) -> None:
    sign_in("teacher")
    app = open_app("wall")
    assert {"Ana", "Ben"} <= {found.value for found in app.subheader}
    (odd,) = [found.value for found in app.subheader if "img" in found.value]
    assert "\\<img" in odd and "\\[x\\]\\(" in odd, "a name is shown as it was typed and does nothing"
    assert not app.dataframe
    app.button(key="wall_open_ana").click().run()
    assert not app.exception and len(app.dataframe) == 1 and "compare_probe" in {box.key for box in app.selectbox}
    app.segmented_control(key="wall_view").set_value("queue").run()
    assert not app.exception and "No job waits" in shown(app)
    app.button(key="wall_pause").click().run()
    assert "The queue is paused" in shown(app)


def test_student_sees_the_own_workspace_and_the_board_until_it_is_hidden(room: Classroom, sign_in: Callable, open_app: Open) -> None:
    sign_in("student", "ana")
    app = open_app("compare", lang="zh")
    own = next((room.folder / "ana" / "runs").iterdir()).name
    other = next((room.folder / "ben" / "runs").iterdir()).name
    assert app.selectbox(key="compare_run").options and own in app.selectbox(key="compare_run").options[0]
    app = open_app("compare", run=other)
    assert any(other.replace("-", "\\-") in found.value or other in found.value for found in app.warning), "that run is not there"
    app = open_app("wall")
    assert len(app.dataframe) == 1
    assert "wall_pause" not in by_hand().keys(app)
    assert app.segmented_control(key="wall_view").options == ["Leaderboard", "Shared"]
    room.change(leaderboard_is_shown=False)
    app = open_app("wall")
    assert len(app.dataframe) == 0 and "hidden" in shown(app)


def view(app: AppTest, name: str) -> AppTest:
    app.segmented_control(key="wall_view").set_value(name).run()
    assert not app.exception, app.exception
    return app


def test_teacher_hands_out_by_two_clicks(room: Classroom, sign_in: Callable, open_app: Open) -> None:
    by_hand().made_dataset(room.workspace, "shared")
    by_hand().made_dataset(room.workspace_of("ana"), "shared", languages=("zh",))
    hers = (room.folder / "ana" / "datasets" / "shared" / "card.json").read_bytes()
    sign_in("teacher")
    app = view(open_app("wall"), "hand_out")
    assert app.button(key="wall_hand_out").disabled
    app.selectbox(key="wall_dataset").select("shared").run()
    app.selectbox(key="wall_recipe").select("identity-lesson-cpu").run()
    app.button(key="wall_hand_out").click().run()
    told = [found.value for found in app.success]
    assert not app.exception and len(told) == 2 and "2 got it · 1 keep another of this name" in told[0] and "3 got it" in told[1]
    assert (room.folder / "ben" / "datasets" / "shared" / "rows.jsonl").read_bytes() == \
        (room.workspace.datasets / "shared" / "rows.jsonl").read_bytes()
    assert (room.folder / "ana" / "datasets" / "shared" / "card.json").read_bytes() == hers
    assert all((room.folder / student.slug / "recipes" / "identity-lesson-cpu.yaml").exists() for student in room.students())
    room.change(disk_bytes=10_000_000)
    (room.folder / "ben" / "datasets" / "shared" / "card.json").write_text("{", encoding="utf-8")
    app.button(key="wall_hand_out").click().run()
    assert not app.exception and "1 could not get it" in app.success[0].value and "ben" in app.error[0].value


def test_teacher_gives_a_code_removes_somebody_and_takes_them_back(room: Classroom, sign_in: Callable, open_app: Open) -> None:
    token = door().sessions.sign_in("student", "ana")
    sign_in("teacher")
    app = view(open_app("wall"), "people")
    assert f"{room.settings().code[:4]}-{room.settings().code[4:]}" in shown(app)
    names = list(app.dataframe[0].value["Student"])
    assert {"Ana", "Ben"} <= set(names) and list(app.dataframe[0].value["Runs"])[names.index("Ana")] == 1
    app.selectbox(key="wall_whom").select("ana").run()
    app.button(key="wall_renew").click().run()
    code = re.search(r"code of Ana is (\w{4}-\w{4})", shown(app))[1]
    assert room.enter("Ana", code) is not None and door().sessions.visitor(token) is None
    token = door().sessions.sign_in("student", "ana")
    assert "Ana would go. Runs: 1, datasets: 1" in shown(app)
    app.button(key="wall_remove").click().run()
    assert not app.exception and room.student("ana") is None and door().sessions.visitor(token) is None
    assert "Ana" not in list(app.dataframe[0].value["Student"]) and "Removed; they can come back" in shown(app)
    next(button for button in app.button if str(button.key).startswith("wall_back_")).click().run()
    assert not app.exception and room.student("ana") is not None and "Ana" in list(app.dataframe[0].value["Student"])


def test_teacher_sets_what_one_student_may_use(room: Classroom, sign_in: Callable, open_app: Open) -> None:
    sign_in("teacher")
    app = view(open_app("wall"), "people")
    app.number_input(key="wall_disk").set_value(2.5)
    app.number_input(key="wall_memory").set_value(3.0)
    app.button(key="wall_keep").click().run()
    assert not app.exception and (room.settings().disk_bytes, room.settings().memory_bytes) == (2_500_000_000, 3_000_000_000)


def test_page_of_a_removed_student_says_so_and_shows_nothing(room: Classroom, sign_in: Callable, open_app: Open) -> None:
    sign_in("student", "ana")
    remove_student(room, "ana")  # as the command does it, which knows of no session
    app = AppTest.from_file(str(ROOT / "studio" / "app.py"), default_timeout=20).run()
    assert not app.exception and "no longer in this class" in app.error[0].value
    assert not app.sidebar.children and not app.button and not (room.folder / "ana").exists()
    assert not app.run().error and not app.main.children, "the session has ended"


def test_run_is_shown_to_the_class_by_a_switch_and_taken_back(room: Classroom, sign_in: Callable, open_app: Open) -> None:
    run = next((room.folder / "ana" / "runs").iterdir()).name
    sign_in("student", "ana")
    app = open_app("compare")
    app.toggle(key=f"wall_share_{run}").set_value(True).run()
    assert not app.exception and [found.run.id for found in shared_runs(room)] == [run]
    sign_in("student", "ben")
    app = view(open_app("wall"), "shared")
    assert len(app.dataframe) == 1 and "Ana" in app.selectbox(key="wall_shared_run").options[0]
    app.button(key="wall_take_recipe").click().run()
    assert not app.exception and [path.stem for path in (room.folder / "ben" / "recipes").iterdir()] == [f"ana-{run}"]
    share_run(room.workspace_of("ana"), Run(room.folder / "ana" / "runs" / run), False)
    app = view(open_app("wall"), "shared")
    assert not app.dataframe and "Nobody shows anything yet" in shown(app)
    sign_in("teacher")
    assert "Nobody shows anything yet" in shown(view(open_app("wall", lang="en"), "shared"))


def test_teacher_hides_the_leaderboard_and_takes_the_results(room: Classroom, sign_in: Callable, open_app: Open) -> None:
    odd = next(student for student in room.students() if student.name.startswith("="))
    by_hand().write_run(room.workspace_of(odd.slug), "alex", kind="replay")
    sign_in("teacher")
    app = view(open_app("wall"), "board")
    board = app.dataframe[0].value
    assert list(board["Student"])[1:] == ["Ben", "Ana"] and list(board["Place"]) == [1, 1, 3], "equal scores share a place"
    assert {button.key for button in app.get("download_button")} == {"wall_csv", "wall_zip"}
    app.toggle(key="wall_board_shown").set_value(False).run()
    assert not app.exception and not room.settings().leaderboard_is_shown


@pytest.fixture
def line(room: Classroom) -> Iterator[ClassQueue]:
    """Ana's job runs, Ben's and the teacher's wait; each entry is locked as its worker locks it."""
    queue = ClassQueue(room.workspace.root)
    (queue.folder / "entries").mkdir(parents=True)
    with ExitStack() as held:
        for number, (member, workspace) in enumerate(room.members()[:3]):
            job = create_job(workspace.jobs / f"j{number}", "judge", {})
            entry = Entry(member=member, job=job.id, kind="judge", device="cpu", asked=number, started=1.0 if member == "ana" else None)
            stream = held.enter_context((queue.folder / "entries" / f"{entry.key}.json").open("w", encoding="utf-8"))
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(entry.model_dump_json())
            stream.flush()
        yield queue


def test_teacher_puts_a_job_last_and_stops_one(room: Classroom, line: ClassQueue, sign_in: Callable, open_app: Open) -> None:
    sign_in("teacher")
    app = view(open_app("wall"), "queue")
    first, second = [entry.key for entry in line.waiting()]
    running = next(entry for entry in line.entries() if entry.started is not None)
    assert "Running on cpu" in shown(app) and "begins as soon as the device is free" in shown(app)
    app.button(key=f"wall_last_{first}").click().run()
    assert not app.exception and [entry.key for entry in line.waiting()] == [second, first]
    app.button(key=f"wall_first_{first}").click().run()
    assert [entry.key for entry in line.waiting()] == [first, second]
    app.button(key=f"wall_stop_{running.key}").click().run()
    assert not app.exception and (job_of(room.workspace, running).folder / "stop").exists()


def test_no_page_draws_anything_without_a_session(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate stands before; should somebody come past it, the page still has nothing for them."""
    monkeypatch.setenv(GATE, "share")
    forget_door()
    monkeypatch.setattr(type(st.context), "cookies", property(lambda self: {cookie_name(): "a guess"}))
    for page in sorted(path.stem for path in (ROOT / "pages").glob("*.py")):
        app = AppTest.from_file(str(ROOT / "studio" / "app.py"), default_timeout=20).run()
        if page != "home":
            app.switch_page(f"../pages/{page}.py").run()
        assert not app.exception and not app.main.children and not app.sidebar.children, page
    forget_door()
