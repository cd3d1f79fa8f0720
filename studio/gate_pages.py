"""The gate's pages: plain HTML without scripts. Every value is escaped; the words lie in `i18n/*/gate.yaml`."""

from __future__ import annotations

from html import escape
from typing import Any

from core.errors import StudioError
from studio.i18n import words

_STYLE = """
:root { color-scheme: light dark; --back: #f3f5f6; --card: #fff; --text: #101820; --soft: #4a5763; --line: #d8dee3; --accent: #0c6b63; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14191f; --card: #1d242c; --text: #e4e9ee; --soft: #aab4be; --line: #333d47; --accent: #168379; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--back); color: var(--text);
  font: 18px/1.5 'Source Sans', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', system-ui, sans-serif; }
main { width: min(26rem, 92vw); background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 2rem; margin: 1rem 0; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } p { margin: .25rem 0 1rem; color: var(--soft); }
label { display: block; margin: .75rem 0 .25rem; }
input { width: 100%; font: inherit; padding: .5rem .75rem; border: 1px solid var(--line); border-radius: 6px; background: var(--back);
  color: inherit; }
button, a.go { display: block; width: 100%; margin-top: 1.25rem; padding: .6rem; border: 0; border-radius: 6px; background: var(--accent);
  color: #fff; font: inherit; text-align: center; text-decoration: none; cursor: pointer; }
input:focus-visible, button:focus-visible, a:focus-visible, summary:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.notice { border-left: 4px solid #c2410c; padding: .25rem .75rem; color: var(--text); margin: .75rem 0; }
.code { font: 700 2rem 'Source Code Pro', ui-monospace, monospace; letter-spacing: .15em; text-align: center; color: var(--text); }
details { margin-top: 1.5rem; border-top: 1px solid var(--line); padding-top: 1rem; } summary { cursor: pointer; }
nav { font-size: .9rem; text-align: right; } nav a { color: var(--soft); }
"""


class Notice:
    """What went wrong: words of the gate, or an error of the core."""

    def __init__(self, key: str = "", error: StudioError | None = None, **values: str) -> None:
        self._key, self._error, self._values = key, error, values

    def to(self, language: str) -> str:
        if self._error is not None:
            return f"{self._error.problem.to(language)} {self._error.hint.to(language)}"
        return words(language)[self._key].format(**self._values)


def sign_in_page(language: str, *, is_class: bool, needs_code: bool, wanted: str, notice: Notice | None, code: str, name: str) -> str:
    """The page by which one comes in: a password, or for a class a name first and the teacher's password folded below."""
    def w(key: str, **values: Any) -> str:
        return escape(words(language)[key].format(**values))

    hidden = f'<input type="hidden" name="next" value="{escape(wanted)}">'
    warned = f'<p class="notice" role="alert">{escape(notice.to(language))}</p>' if notice else ""
    password = (f'<form method="post" action="/sign-in">{hidden}<label for="password">{w("gate.password")}</label>'
                f'<input id="password" name="password" type="password" autocomplete="current-password" maxlength="256" required'
                f'{"" if is_class else " autofocus"}><button>{w("gate.go_in")}</button></form>')
    if not is_class:
        return _page(language, w("gate.title"), f"<h1>{w('gate.title')}</h1><p>{w('gate.ask_password')}</p>{warned}{password}", wanted)
    code_field = (f'<label for="code">{w("gate.class_code")}</label><input id="code" name="code" autocomplete="off" maxlength="32" '
                  f'value="{escape(code[:32])}">') if needs_code else ""
    student = (f'<form method="post" action="/sign-in">{hidden}<label for="name">{w("gate.name")}</label>'
               f'<input id="name" name="name" maxlength="40" autocomplete="name" value="{escape(name[:40])}" required autofocus>'
               f'{code_field}'
               f'<label for="own">{w("gate.own_code")}</label>'
               f'<input id="own" name="own" autocomplete="off" maxlength="32">'
               f'<button>{w("gate.join")}</button></form>')
    teacher = f"<details><summary>{w('gate.i_teach')}</summary>{password}</details>"
    body = f"<h1>{w('gate.class_title')}</h1><p>{w('gate.ask_name')}</p>{warned}{student}{teacher}"
    return _page(language, w("gate.class_title"), body, wanted)


def code_page(language: str, name: str, code: str, wanted: str) -> str:
    """Shown once to somebody who has just joined: the code by which they come back."""
    def w(key: str, **values: Any) -> str:
        return escape(words(language)[key].format(**values))

    return _page(language, w("gate.welcome", name=name), (
        f"<h1>{w('gate.welcome', name=name)}</h1><p>{w('gate.keep_code')}</p><p class=\"code\">{escape(code[:4])}-{escape(code[4:])}</p>"
        f'<a class="go" href="{escape(wanted)}">{w("gate.go_on")}</a>'), None)


def sign_out_page(language: str) -> str:
    """Asks once more; a mere link must not sign anybody out."""
    leave = escape(words(language)["gate.leave"])
    return _page(language, leave, f'<h1>{leave}</h1><p>{escape(words(language)["gate.leave_keeps"])}</p>'
                 f'<form method="post" action="/sign-out"><button>{leave}</button></form>', None)


def _page(language: str, title: str, body: str, wanted: str | None) -> str:
    other, label = ("zh", "中文") if language == "en" else ("en", "English")
    switch = f'<nav><a href="/sign-in?lang={other}" lang="{other}">{label}</a></nav>' if wanted is not None else ""
    return (f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{title} · Sweetspot</title><style>{_STYLE}</style></head><body><main>{switch}{body}</main></body></html>")
