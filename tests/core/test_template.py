"""A chat template is a stranger's program: what it may do, and what ends in a sentence instead of in a server that hangs."""

from __future__ import annotations

import time
from pathlib import Path

import jinja2
import pytest

from core.data.encode import Encoder
from core.data.template import compile_template
from core.errors import StudioError

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "calls that double": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a loop in a filter": "{% for a in range(99999) %}{{ range(99999)|map('string')|list|length }}{% endfor %}",
    "a call of itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}
HUGE = {
    "a product": "{{ 'x' * 1000000000 }}", "a product of a list": "{{ [1] * 1000000000 }}", "a power": "{{ 10 ** 100000000 }}",
    "powers of powers": "{% set n = namespace(x=9) %}{% for i in range(90) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "a sum that doubles": "{% set n = namespace(x='xy') %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a joint that doubles": "{% set n = namespace(x='xy') %}{% for i in range(90) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(x=[1]) %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "padding": "{{ 'x'.ljust(1000000000) }}", "centring": "{{ 'x'|center(1000000000) }}", "a width": "{{ '%1000000000d' % 1 }}",
    "a format": "{{ '{:1000000000}'.format(1) }}", "a format in a format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a filter's format": "{{ '%1000000000d'|format(1) }}", "a replacement": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "a filter's replacement": "{{ ('x' * 100000)|replace('x', 'y' * 100000) }}", "joining": "{{ ('y' * 100000).join(['x'] * 100000) }}",
    "joining by a filter": "{{ range(99999)|join('y' * 100000) }}", "indenting": "{{ 'x\n' * 100000|int|indent(100000) }}",
    "JSON": "{{ messages|tojson(indent=1000000000) }}", "rows": "{{ [1]|batch(1000000000, 0)|list }}",
    "a block": "{% set a %}{% for i in range(9999) %}{{ 'x' * 100000 }}{% endfor %}{% endset %}{{ a }}",
    "many large texts": "{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = n.x + ['x' * 19000000] %}"
                        "{% endfor %}",
    "many large lists": "{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = n.x + [[1] * 999999] %}{% endfor %}",
    "a list of a text": "{{ ('x' * 19000000)|list|length }}", "pieces of a text": "{{ ('x ' * 9000000).split()|length }}",
    "output": "{% for i in range(9999) %}{{ 'x' * 1000000 }}{% endfor %}",
}
FORBIDDEN = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}", "globals": "{{ raise_exception.__globals__.x }}",
    "imports": "{% import '/etc/passwd' as x %}", "a file": "{% include '/etc/passwd' %}",
    "the environment": "{{ self.__init__.__globals__ }}",
    "a filter's attribute": "{{ [raise_exception]|map(attribute='__globals__')|first.x }}",
    "a format's attribute": "{{ '{0.__globals__.x}'.format(raise_exception) }}",
    "a format by a filter": "{{ ['%s %s']|map('format', 1)|list }}", "a division": "{{ 1 // 0 }}",
    "nothing": "{{ messages[9]['content'] + 'x' }}",
}


@pytest.mark.parametrize("template", [*ENDLESS.values(), *HUGE.values(), *FORBIDDEN.values()],
                         ids=[*ENDLESS, *HUGE, *FORBIDDEN])
def test_a_hostile_template_ends_in_a_sentence_within_seconds(template: str, tiny_model: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.data.template.SECONDS", 0.2)
    whole = Encoder.from_folder(tiny_model)
    began = time.thread_time()
    with pytest.raises(StudioError, match="The chat template (refuses this conversation|cannot be read)") as caught:
        Encoder(whole.tokenizer, template, whole.special, whole.end_ids).render(HELLO)
    assert time.thread_time() - began < 1 and len(str(caught.value)) < 500


def test_a_template_that_is_no_template() -> None:
    for source in ("{% for %}", "{{ " + "(" * 5000 + ")" * 5000 + " }}", "x" * 1_000_001, "{{ 'x'|urlize }}", "{% extends 'a' %}{{"):
        with pytest.raises((StudioError, jinja2.TemplateError)):
            compile_template(source)()


@pytest.mark.parametrize(("source", "rendered"), [
    ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{{ loop.first }} {% endfor %}",
     "1/2,True 2/2False "),
    ("{% for m in messages if m.role == 'user' %}{{ m.content|trim ~ '!' }}{% else %}none{% endfor %}", "Hello!"),
    ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k ~ v }}{% endfor %}", "a1b2"),
    ("{{ messages[1:]|map(attribute='content')|join(', ') }}", "Yes?"),
    ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') + f('b') }}", "<a><b>"),
    ("{% set n = namespace(x=0) %}{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}"
     "{% set n.x = n.x + i %}{% endfor %}{{ n.x }}",
     "2"),
    ("{{ '%05.1f' % 2.25 }} {{ 'a-b'.split('-')|last }} {{ 'abc'.replace('b', '') }} {{ [1, 2] + [3] }} {{ 2 ** 10 }}",
     "002.2 b ac [1, 2, 3] 1024"),
    ("{{ {'a': [1]}|tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
    ("{% filter upper %}a{% endfilter %}{% for i in [1, [2]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}", "A12"),
])
def test_what_published_templates_do_is_unchanged(source: str, rendered: str) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Yes?"}]
    assert compile_template(source)(messages=messages) == rendered
    import jinja2.sandbox
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    if "tojson" not in source:
        assert plain.from_string(source).render(messages=messages) == rendered


def test_a_prompt_of_five_megabytes_is_no_attack(tiny_model: Path) -> None:
    long = "word " * 1_000_000
    assert len(Encoder.from_folder(tiny_model).render([{"role": "user", "content": long}])) > 5_000_000
