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
# Lists that hold another one twice, forty times over: written out, compared or hashed they are a thousand billion entries.
TWICE = "{% set n = namespace(x=[0]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
TWICE_AGAIN = "{% set m = namespace(x=[0]) %}{% for i in range(40) %}{% set m.x = [m.x, m.x] %}{% endfor %}"
PAIRS = "{% set n = namespace(x=(0,)) %}{% for i in range(40) %}{% set n.x = (n.x, n.x) %}{% endfor %}"
NESTED = {
    "written": TWICE + "{{ n.x }}", "joined": TWICE + "{{ 'a' ~ n.x }}", "as a text": TWICE + "{{ n.x|string|length }}",
    "as JSON": TWICE + "{{ n.x|tojson }}", "in a format": TWICE + "{{ '%s' % [n.x] }}",
    "in a format's field": TWICE + "{{ '{}'.format(n.x) }}",
    "compared": TWICE + TWICE_AGAIN + "{{ n.x == m.x }}", "tested": TWICE + TWICE_AGAIN + "{% if n.x is eq m.x %}{% endif %}",
    "looked for": TWICE + TWICE_AGAIN + "{{ [n.x].index(m.x) }}", "hashed": PAIRS + "{{ {n.x: 1}|length }}",
    "looked up": PAIRS + "{{ {'a': 1}[n.x] }}", "unique": PAIRS + "{{ [n.x, n.x]|unique|list|length }}",
    "in a macro": "{% macro f() %}{{ varargs }}{% endmacro %}" + TWICE + "{{ f(n.x) }}",
    "in a namespace": "{% set n = namespace(x=namespace()) %}"
                      "{% for i in range(40) %}{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n }}",
    "in itself": "{% set n = namespace() %}{% set n.x = [n, n] %}{{ n }}",
    "raised": TWICE + "{{ raise_exception(n.x) }}", "a list of texts": "{{ ['x' * 10000000] * 1000 }}",
}
HUGE = {
    "bytes": "{{ 'x'.encode().ljust(10000000000)|length }}", "bytes of a number": "{{ (1).to_bytes(4000000000, 'big')|length }}",
    "a number of letters": "{{ ('f' * 900000)|int(base=16) // 3 }}", "a quotient": "{{ 0x" + "f" * 90000 + " // 0x" + "f" * 45000 + " }}",
    "a rounding": "{{ 5|round(-1000000000) }}", "a rounding up": "{{ 5|round(1000000000, 'ceil') }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(10000)|length }}", "JSON's width": "{{ range(90000)|list|tojson(indent=9000)|length }}",
    "a name many times": "{{ '" + "%(a)s" * 30000 + "' % {'a': 'x' * 1000000} }}",
    "wide fields": "{{ '" + "%(a)9999d" * 20000 + "' % {'a': 1} }}",
    "a sum of lists": "{{ ([[0] * 1000] * 100000)|sum(start=[])|length }}", "letters": "{{ ('\u4e2d' * 19000000)|list|length }}",
    "words": "{{ ('ab ' * 6000000)|title|length }}",
    "slices": "{% set t = 'x' * 19000000 %}{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = [n.x, t[i:]] %}{% endfor %}",
    "a long reason": "{{ raise_exception('x' * 10000000) }}",
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


@pytest.mark.parametrize("template", [*ENDLESS.values(), *NESTED.values(), *HUGE.values(), *FORBIDDEN.values()],
                         ids=[*ENDLESS, *NESTED, *HUGE, *FORBIDDEN])
def test_a_hostile_template_ends_in_a_sentence_within_seconds(template: str, tiny_model: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.data.template_work.SECONDS", 0.2)
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
    ("{{ messages }}{{ messages == messages[:] }}{{ 'Hello' in messages[0].content }}{{ [1, 2.5]|sum }}"
     "{{ 2.345|round(2) }}{{ 7 // 2 - 1 }}",
     "[{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'Yes?'}]TrueTrue3.52.352"),
    ("{% if messages[0].role in ['user', 'tool'] and messages|length > 1 %}{{ messages[-1]['content'][:2] }}{% endif %}", "Ye"),
    ("{{ messages|map(attribute='role')|list == ['user', 'assistant'] }}{{ {('a', 1): 2}[('a', 1)] }}", "True2"),
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


def test_what_is_held_twice_is_counted_twice_and_looked_at_once() -> None:
    from core.data.template_work import Budget, TooMuchWork, budget, measured

    shared = ["ab", 1]
    token = budget.set(Budget())
    try:
        assert measured("abc", 5, None) == 3
        one = measured(shared)
        assert measured([shared, shared]) == 2 * one + 1 == measured([list(shared), list(shared)])
        assert measured({"k": shared}.items()) == one + 4
        for _ in range(30):
            shared = [shared, shared]
        with pytest.raises(TooMuchWork):
            measured(shared)
    finally:
        budget.reset(token)


def test_a_prompt_of_five_megabytes_is_no_attack(tiny_model: Path) -> None:
    long = "word " * 1_000_000
    assert len(Encoder.from_folder(tiny_model).render([{"role": "user", "content": long}])) > 5_000_000
