"""The Class page, and what the class's core makes of workspaces full of runs."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.classroom.handout import hand_out_dataset, hand_out_recipe
from core.classroom.room import Classroom
from core.classroom.wall import leaderboard, read_wall, results_csv, write_results
from core.errors import StudioError
from core.workspace import Workspace
from studio.visitors import GATE, cookie_name, door, forget_door

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
    app.button(key="wall_open_ana").click().run()
    assert not app.exception and any("Ana" in found.value and found.value != "Ana" for found in app.subheader)
    assert len(app.dataframe) >= 1
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
    assert "wall_pause" not in by_hand().keys(app) and not app.main.segmented_control
    room.change(leaderboard_is_shown=False)
    app = open_app("wall")
    assert len(app.dataframe) == 0 and "hidden" in shown(app)


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
