"""The gate before a shared studio, spoken to as a server speaks to it: what it lets through, and what never reaches Streamlit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from urllib.parse import urlencode

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg

import studio.gate as gate_module
from core.access.guesses import Guesses
from core.access.password import set_password
from core.access.sessions import Sessions
from core.classroom.room import Classroom
from core.workspace import Workspace
from studio.gate import Gate, OwnPages, _local_path
from studio.visitors import Door, cookie_name

PASSWORD = "correct horse"
# Everything Streamlit 1.67 answers to, as its `create_streamlit_routes` lists it, and the pages.
CLOSED = (
    "/", "/data", "/recipe", "/train", "/compare", "/merge", "/chat", "/wall", "/media/0123.png", "/component/x/index.html",
    "/_stcore/host-config", "/_stcore/metrics", "/_stcore/upload_file/session/file", "/_stcore/agent/interact", "/static/js/index.js",
    "/_stcore/script-health-check", "/_stcore/health/../host-config", "//media/x", "/favicon.png", "/oauth2callback", "/sign-in/../data")


@dataclass
class Behind:
    """What stands in for Streamlit: remembers what reached it."""

    reached: list[str] = field(default_factory=list)
    heard: list[dict] = field(default_factory=list)

    async def __call__(self, scope, receive, send) -> None:
        self.reached.append(scope["path"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"inside"})
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            self.heard.append(message)
            await send({"type": "websocket.send", "bytes": b"a page"})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str


class Studio:
    """A gate with its door, and requests to it."""

    def __init__(self, workspace: Workspace, is_class: bool = False, hosts: tuple[str, ...] = ()) -> None:
        self.now = 1_000_000.0
        set_password(workspace, PASSWORD)
        folder = workspace.root / "access"
        room = Classroom.open(workspace) if is_class else None
        self.door = Door(workspace, Sessions(folder / "sessions.json", lambda: self.now),
                         Guesses(folder / "guesses.json", lambda: self.now), room, True, frozenset(hosts))
        self.behind = Behind()
        self.gate = Gate(self.behind, self.door)

    def ask(self, path: str, method: str = "GET", form: dict | None = None, cookie: str = "", **headers: str) -> Answer:
        body = urlencode(form).encode() if form is not None else b""
        sent: list[dict] = []
        incoming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        plain_path, _, query = path.partition("?")
        asyncio.run(self.gate({**self._scope(cookie, headers), "type": "http", "method": method, "path": plain_path,
                               "raw_path": plain_path.encode(), "query_string": query.encode()}, receive, send))
        found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]).decode())

    def _scope(self, cookie: str, headers: dict[str, str]) -> dict:
        all_headers = {"host": "studio:6006", "accept": "*/*"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if cookie:
            all_headers["cookie"] = f"{cookie_name()}={cookie}"
        return {"http_version": "1.1", "scheme": "http", "root_path": "", "client": ("10.0.0.7", 5000), "server": ("studio", 6006),
                "headers": [(name.encode(), value.encode()) for name, value in all_headers.items()]}

    def sign_in(self, **form: str) -> Answer:
        return self.ask("/sign-in", "POST", form)

    def talk(self, messages: list[dict], cookie: str = "", before: dict | None = None, **headers: str) -> list[dict]:
        """A websocket: sends `messages` one after another; `before[n]` runs before the n-th. Returns what the browser got."""
        sent: list[dict] = []
        steps = {"at": 0}

        async def receive() -> dict:
            number = steps["at"]
            steps["at"] += 1
            if before and number in before:
                before[number]()
            if number == 0:
                return {"type": "websocket.connect"}
            if number <= len(messages):
                return messages[number - 1]
            if before and "forever" in before:
                await asyncio.sleep(3600)
            return {"type": "websocket.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {**self._scope(cookie, headers), "type": "websocket", "path": "/_stcore/stream", "query_string": b"", "subprotocols": []}
        asyncio.run(asyncio.wait_for(self.gate(scope, receive, send), 10))
        return sent


def cookie_of(answer: Answer) -> str:
    return answer.headers["set-cookie"].partition("=")[2].partition(";")[0]


@pytest.fixture
def studio(workspace: Workspace) -> Studio:
    return Studio(workspace)


@pytest.fixture
def school(workspace: Workspace) -> Studio:
    return Studio(workspace, is_class=True)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_nothing_reaches_streamlit_without_a_session(studio: Studio, method: str) -> None:
    for path in CLOSED:
        for accept in ("*/*", "text/html"):
            answer = studio.ask(path, method, accept=accept)
            assert answer.status in (303, 403), path
            assert "inside" not in answer.body
    assert studio.behind.reached == []


def test_health_says_ok_to_everybody_and_takes_nothing(studio: Studio) -> None:
    assert studio.ask("/_stcore/health").body == "inside"
    assert studio.ask("/_stcore/health", "POST").status == 403


@pytest.mark.parametrize("cookie", ["", "x", "../../etc/passwd", "a" * 3000])
def test_websocket_without_a_session_is_refused_before_it_opens(studio: Studio, cookie: str) -> None:
    sent = studio.talk([], cookie)
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert studio.behind.reached == []


def test_deep_link_leads_to_the_sign_in_page_and_back(studio: Studio) -> None:
    turned_away = studio.ask("/compare?run=alex&lang=zh", accept="text/html")
    assert turned_away.status == 303
    page = studio.ask(turned_away.headers["location"])
    assert page.status == 200 and "密码" in page.body and 'value="/compare?run=alex&amp;lang=zh"' in page.body
    entered = studio.sign_in(password=PASSWORD, next="/compare?run=alex&lang=zh")
    assert (entered.status, entered.headers["location"]) == (303, "/compare?run=alex&lang=zh")
    assert studio.ask("/compare", cookie=cookie_of(entered)).body == "inside"


def test_cookie_is_out_of_reach_for_scripts_and_other_sites(studio: Studio) -> None:
    cookie = studio.sign_in(password=PASSWORD).headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and "path=/" in cookie and "max-age=43200" in cookie


@pytest.mark.parametrize("where", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "/sign-out",
                                   "/_stcore/stream", "", "data", "/a\r\nSet-Cookie: x=1", "//[", "https://[", "//\u2100"])
def test_sign_in_never_leads_elsewhere(where: str) -> None:
    assert _local_path(where) == "/"


def test_wrong_passwords_get_slower_over_page_loads_and_sessions(studio: Studio) -> None:
    statuses = [studio.sign_in(password=f"wrong {number}").status for number in range(8)]
    assert statuses[:5] == [403] * 5 and statuses[5:] == [429] * 3
    assert studio.sign_in(password=PASSWORD).status == 429, "the right one has to wait too: else a guess would tell"
    studio.now += 900
    assert studio.sign_in(password=PASSWORD).status == 303


def test_a_student_cannot_guess_the_teacher_s_password_between_sign_ins_of_the_own(school: Studio) -> None:
    code = school.door.room.settings().code
    own = school.sign_in(name="Ana", code=code).body.split('class="code">')[1].split("<")[0]
    statuses = []
    for number in range(8):
        statuses.append(school.sign_in(password=f"wrong {number}").status)
        assert school.sign_in(name="Ana", own=own).status == 303
        assert school.sign_in(name="Ana", code=code).status == 400, "taken, and the class's code was right"
    assert statuses == [403] * 5 + [429] * 3


@pytest.mark.parametrize("form", [{}, {"password": ""}, {"name": "Ana"}, {"password": "x" * 5000}, {"request": "x", "status": "1"}])
def test_odd_forms_let_nobody_in(studio: Studio, form: dict) -> None:
    assert studio.sign_in(**form).status in (400, 403)
    for origin in ("http://evil.example", "http://[", "null", "http://studio"):
        assert studio.ask("/sign-in", "POST", form, origin=origin).status == 403
    assert studio.ask("/sign-in?next=//[").status == 200


def test_script_in_a_name_or_link_is_shown_as_text(school: Studio) -> None:
    attack = '"><script>alert(1)</script>'
    page = school.ask("/sign-in?" + urlencode({"next": f"/{attack}", "code": attack}))
    again = school.sign_in(name=attack, code="WRONG", next=f"/{attack}")
    welcome = school.sign_in(name="<b>Ana</b>", code=school.door.room.settings().code)
    for answer in (page, again, welcome):
        assert "<script" not in answer.body and "<b>" not in answer.body
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "&lt;b&gt;Ana" in welcome.body


def test_every_answer_forbids_frames_and_guessing_types(studio: Studio) -> None:
    cookie = cookie_of(studio.sign_in(password=PASSWORD))
    for answer in (studio.ask("/", cookie=cookie), studio.ask("/sign-in"), studio.ask("/")):
        assert answer.headers["x-frame-options"] == "SAMEORIGIN" and answer.headers["x-content-type-options"] == "nosniff"


def test_unknown_host_is_refused(workspace: Workspace) -> None:
    studio = Studio(workspace, hosts=("studio",))
    assert studio.ask("/sign-in").status == 200
    assert studio.ask("/sign-in", host="evil.example").status == 400
    cookie = cookie_of(studio.sign_in(password=PASSWORD))
    assert [message["type"] for message in studio.talk([], cookie, host="evil.example")] == ["websocket.close"]


@pytest.mark.parametrize("host", ["studio/_stcore/health?", "studio/sign-in#", "x@studio", "studio?", "[", "studio:99999999", ""])
def test_a_host_header_names_a_host_and_nothing_else(workspace: Workspace, host: str) -> None:
    """Some libraries put the path of a request together from it: it must not lead past the gate."""
    studio = Studio(workspace, hosts=("studio",))
    for path in ("/", "/media/x", "/sign-in"):
        answer = studio.ask(path, host=host)
        assert answer.status == 400 and studio.behind.reached == [], path


@pytest.mark.parametrize("origin", ["http://evil.example", "http://studio:8888", "http://localhost:6006", "null", "http://[",
                                    "studio:6006"])
def test_no_other_page_opens_a_websocket_with_a_visitor_s_cookie(studio: Studio, origin: str) -> None:
    """A browser sends the cookie of one port to all ports of a machine, and calls them the same site."""
    cookie = cookie_of(studio.sign_in(password=PASSWORD))
    assert [message["type"] for message in studio.talk([], cookie, origin=origin)] == ["websocket.close"]
    assert studio.behind.reached == []
    assert studio.talk([], cookie, origin="http://studio:6006")[0]["type"] == "websocket.accept"


def test_without_a_gate_only_the_studio_s_own_pages_open_a_websocket(studio: Studio) -> None:
    studio.gate = OwnPages(studio.behind)
    for origin in ("http://evil.example", "http://studio:8888", "http://["):
        assert [message["type"] for message in studio.talk([], origin=origin)] == ["websocket.close"]
    assert studio.behind.reached == []
    assert studio.talk([], origin="http://studio:6006")[0]["type"] == "websocket.accept"
    answer = studio.ask("/data")
    assert answer.body == "inside" and answer.headers["x-frame-options"] == "SAMEORIGIN"


def test_sign_out_ends_the_session_and_needs_more_than_a_link(studio: Studio) -> None:
    cookie = cookie_of(studio.sign_in(password=PASSWORD))
    assert studio.ask("/sign-out", cookie=cookie).status == 200
    assert studio.ask("/", cookie=cookie).body == "inside"
    assert studio.ask("/sign-out", "POST", {}, cookie, origin="http://evil.example").status == 403
    assert studio.ask("/sign-out", "POST", {}, cookie, origin="http://studio:6006").status == 303
    assert studio.ask("/", cookie=cookie).status == 403


def by_hand(is_auto: bool) -> dict:
    message = BackMsg()
    message.rerun_script.query_string = "run=alex"
    message.rerun_script.is_auto_rerun = is_auto
    return {"type": "websocket.receive", "bytes": message.SerializeToString()}


def test_live_panel_keeps_no_session_alive_and_a_click_does(studio: Studio) -> None:
    cookie = cookie_of(studio.sign_in(password=PASSWORD))

    def later() -> None:
        studio.now += 4000

    ticking = studio.talk([by_hand(True), by_hand(True), by_hand(True)], cookie, {1: later, 2: later, 3: later})
    assert ticking[-1] == {"type": "websocket.close", "code": 1008}
    assert len(studio.behind.heard) == 1, "two hours without a click are over at the second tick"
    cookie = cookie_of(studio.sign_in(password=PASSWORD))
    studio.talk([by_hand(False), by_hand(False), by_hand(False)], cookie, {1: later, 2: later, 3: later})
    assert len(studio.behind.heard) == 4


def test_quiet_page_is_cut_when_its_session_ends(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_LOOK_SECONDS", 0.02)
    cookie = cookie_of(studio.sign_in(password=PASSWORD))
    sent = studio.talk([by_hand(False)], cookie, {2: lambda: studio.door.sessions.sign_out(cookie), "forever": None})
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]


def test_student_joins_once_and_comes_back_with_the_own_code(school: Studio) -> None:
    code = school.door.room.settings().code
    assert school.sign_in(name="Ana", code="WRONGONE").status == 403
    joined = school.sign_in(name="Ana", code=f"{code[:4]} {code[4:].lower()}", next="/data")
    assert joined.status == 200 and 'href="/data"' in joined.body
    own = joined.body.split('class="code">')[1].split("<")[0]
    assert school.door.sessions.visitor(cookie_of(joined)).student == "ana"
    taken = school.sign_in(name="Ana", code=code)
    assert taken.status == 400 and "set-cookie" not in taken.headers
    assert school.sign_in(name="Ana", own="WRONGONE").status == 403
    back = school.sign_in(name="ana ", own=own.lower())
    assert back.status == 303 and school.door.sessions.visitor(cookie_of(back)).student == "ana"
    teacher = school.sign_in(password=PASSWORD)
    assert school.door.sessions.visitor(cookie_of(teacher)).role == "teacher"
