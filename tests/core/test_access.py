"""Who comes in: the password's hash, guesses that get slower, sessions that end. The clock is the test's own."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from core.access.guesses import (
    FREE_GUESSES,
    FREE_GUESSES_OF_ALL,
    FREE_GUESSES_OF_CLASS,
    LONGEST_SECONDS,
    LONGEST_SECONDS_OF_ALL,
    Guesses,
    network_of,
)
from core.access.password import hash_password, matches, set_password, stored_password
from core.access.secret_file import access_folder
from core.access.sessions import Sessions
from core.classroom.room import Classroom
from core.errors import StudioError
from core.workspace import Workspace


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_password_is_kept_as_a_salted_hash_that_only_its_owner_reads(workspace: Workspace) -> None:
    set_password(workspace, "correct horse")
    path = access_folder(workspace) / "password.json"
    assert "correct" not in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    stored = stored_password(workspace)
    assert matches("correct horse", stored) and not matches("correct horsf", stored) and not matches("", stored)
    assert hash_password("correct horse") != hash_password("correct horse")


@pytest.mark.parametrize("damaged", ["", "scrypt$1$2$3", "md5$1$1$1$YQ==$YQ==", "scrypt$x$8$1$YQ==$YQ==", "scrypt$16384$8$1$!$?"])
def test_damaged_hash_lets_nobody_in(damaged: str) -> None:
    assert not matches("", damaged) and not matches("anything", damaged)


def test_damaged_password_file_lets_nobody_in(workspace: Workspace) -> None:
    set_password(workspace, "correct horse")
    (access_folder(workspace) / "password.json").write_text('{"ha', encoding="utf-8")
    assert stored_password(workspace) is None


@pytest.mark.parametrize("password", ["", "short", "x" * 257])
def test_password_of_the_wrong_length_is_refused_in_words(workspace: Workspace, password: str) -> None:
    with pytest.raises(StudioError, match="characters"):
        set_password(workspace, password)
    assert stored_password(workspace) is None


def test_guesses_get_slower_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    clock = Clock()
    guesses = Guesses(tmp_path / "guesses.json", clock)
    for _ in range(FREE_GUESSES):
        assert guesses.take("10.0.0.1") == 0
    assert guesses.take("10.0.0.1") == 0  # one more goes through and costs
    waits = []
    for _ in range(12):
        guesses = Guesses(tmp_path / "guesses.json", clock)  # the server was started again
        wait = guesses.seconds_to_wait("10.0.0.1")
        assert guesses.take("10.0.0.1") == wait > 0
        waits.append(wait)
        clock.now += wait
        assert guesses.take("10.0.0.1") == 0
    assert waits == sorted(waits) and waits[-1] == LONGEST_SECONDS
    assert guesses.take("10.0.0.2") == 0, "others are not held up by one who guesses"


def test_a_right_code_wins_no_new_guesses_at_the_password_or_at_another_s_code(tmp_path: Path) -> None:
    guesses = Guesses(tmp_path / "guesses.json", Clock())
    for _ in range(FREE_GUESSES + 1):
        assert guesses.take("10.0.0.1") == 0
        assert guesses.take("10.0.0.1", is_code=True) == 0
        guesses.was_right("10.0.0.1", is_code=True)
    assert guesses.take("10.0.0.1") > 0
    for _ in range(FREE_GUESSES_OF_CLASS + 1 - FREE_GUESSES_OF_ALL + 30):
        guesses.take("10.0.0.1", is_code=True)
    before = guesses._wrong["10.0.0.1 codes"][0]
    assert before >= 30
    class_ = Guesses(tmp_path / "class.json", Clock())
    for _ in range(30):
        class_.take("10.0.0.1", is_code=True)
    assert class_.take("10.0.0.1") == 0, "codes that a class mistypes do not keep its teacher, behind the same address, from the password"
    guesses.take("10.0.0.1", is_code=True)
    guesses.was_right("10.0.0.1", is_code=True)
    assert guesses._wrong["10.0.0.1 codes"][0] == before, "the own code gives back its own guess and no more"


def test_many_addresses_are_slowed_together_and_never_shut_the_owner_out(tmp_path: Path) -> None:
    clock = Clock()
    guesses = Guesses(tmp_path / "guesses.json", clock)
    for number in range(FREE_GUESSES_OF_ALL + 30):  # patient ones, each from an address of its own
        clock.now += guesses.seconds_to_wait(f"10.0.0.{number}")
        assert guesses.take(f"10.0.0.{number}") == 0
    assert guesses.take("10.0.1.1") > 0, "and who guesses at once from another one has to wait as well"
    wait = guesses.take("192.168.1.1")
    assert LONGEST_SECONDS_OF_ALL / 2 < wait <= LONGEST_SECONDS_OF_ALL
    clock.now += wait
    assert guesses.take("192.168.1.1") == 0
    guesses.was_right("192.168.1.1")
    assert guesses.seconds_to_wait("192.168.1.1") <= LONGEST_SECONDS_OF_ALL


def test_ipv6_customer_counts_as_one() -> None:
    assert network_of("2001:db8:1:2::5") == network_of("2001:db8:1:2:ffff::9") != network_of("2001:db8:1:3::5")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1")
    assert network_of("not an address") == "unknown"


def test_session_ends_idle_and_in_any_case(tmp_path: Path) -> None:
    clock = Clock()
    sessions = Sessions(tmp_path / "sessions.json", clock, idle_seconds=100, absolute_seconds=250)
    token = sessions.sign_in("student", "ana")
    for _ in range(2):
        clock.now += 90
        sessions.touch(token)
        assert sessions.visitor(token).student == "ana"
    clock.now += 80  # used all the time, but 260 seconds old
    sessions.touch(token)
    assert sessions.visitor(token) is None
    second = sessions.sign_in("owner")
    clock.now += 101
    assert sessions.visitor(second) is None, "nobody did anything for too long"


def test_sessions_are_kept_without_their_tokens_and_end_when_told_to(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "sessions.json"
    sessions = Sessions(path, clock)
    ana, ben, teacher = sessions.sign_in("student", "ana"), sessions.sign_in("student", "ben"), sessions.sign_in("teacher")
    assert not any(token in path.read_text(encoding="utf-8") for token in (ana, ben, teacher))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Sessions(path, clock)  # the server was started again
    assert again.visitor(ana).student == "ana" and again.visitor(teacher).role == "teacher"
    again.sign_out_everybody(student="ana")
    assert again.visitor(ana) is None and again.visitor(ben).student == "ben"
    again.sign_out(ben)
    assert Sessions(path, clock).visitor(ben) is None
    for wrong in (None, "", "x", "x" * 10_000, json.dumps({}), ana[:-1]):
        assert again.visitor(wrong) is None


def test_a_student_who_signs_in_again_and_again_pushes_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.access.sessions._MOST", 30)
    clock = Clock()
    sessions = Sessions(tmp_path / "sessions.json", clock)
    teacher, ben = sessions.sign_in("teacher"), sessions.sign_in("student", "ben")
    own = []
    for _ in range(40):
        clock.now += 1
        own.append(sessions.sign_in("student", "ana"))
    assert sessions.visitor(teacher) and sessions.visitor(ben)
    assert [sessions.visitor(token) is not None for token in own] == [False] * 20 + [True] * 20


def test_code_of_a_class_is_read_by_its_owner_only(workspace: Workspace) -> None:
    room = Classroom.open(workspace)
    room.change(leaderboard_is_shown=False)
    assert stat.S_IMODE((workspace.root / "class.json").stat().st_mode) == 0o600
