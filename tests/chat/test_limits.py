"""Templates that would run for ever, or fill the memory, are errors, and quickly so."""

import pytest

from chatloom.chat import limits
from chatloom.chat.message import conversation
from chatloom.chat.templates import CHATLOOM_TEMPLATE, ChatTemplate

ASKED = conversation([{"role": "user", "content": "Who bakes?"}, {"role": "assistant", "content": "Ada."}])

ENDLESS = {
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "three small loops": "{% for i in range(999) %}{% for j in range(999) %}{% for k in range(999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "a filtered loop": "{% for i in range(99999) for j in [] %}{% endfor %}",
    "a loop with a test": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a macro without end": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a recursive loop": "{% for i in [1, 2] recursive %}{{ loop([i, i]) }}{% endfor %}",
    "a filter that sums": "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "a filter of a filter": "{% for i in range(99999) %}{{ range(99999) | reverse | map('string') | first }}"
    "{{ range(99999) | reverse | sum }}{% endfor %}",
}
ENORMOUS = {
    "text times number": "{{ 'ab' * 10**9 }}",
    "list times number": "{{ ([0] * 10**9) | length }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "repeated squares": "{% set n = namespace(x=99) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling by plus": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by join": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "nested lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "nested mappings": "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {1: ns.x, 2: ns.x} %}"
    "{% endfor %}{{ ns.x | tojson }}",
    "a wide field": "{{ '%1000000000d' % 1 }}",
    "a wide format": "{{ '{:>1000000000}'.format(1) }}",
    "a format of format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a star": "{{ '%*d' % (1000000000, 1) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "constant center": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "a method that replaces": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "join": "{{ range(99999) | join('b' * 100000) }}",
    "a method that joins": "{{ ('b' * 100000).join('a' * 99999) }}",
    "tabs": "{{ ('\\t' * 100000).expandtabs(900000) }}",
    "indented json": "{{ ([0] * 100000) | tojson(indent=900000) }}",
    "indent": "{{ ('a\\n' * 100000) | indent(900000) }}",
}


@pytest.mark.parametrize("source", [*ENDLESS.values(), *ENORMOUS.values()], ids=[*ENDLESS, *ENORMOUS])
def test_what_never_ends_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template"):
        ChatTemplate(source).render(ASKED)


BROKEN = (
    *("{% for", "{{ 1", "{% if %}", "{% endfor %}", "{{ x | nofilter }}", "{{ " + "(" * 5000 + " }}"),
    *("{% if 1 %}" * 200 + "{% endif %}" * 200, "x" * (limits.MAX_SOURCE + 1)),
)


@pytest.mark.parametrize("source", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_template_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template"):
        ChatTemplate(source).render(ASKED)


def test_the_limits_leave_what_a_long_conversation_needs() -> None:
    turns = [{"role": "user", "content": "why " * 2000}, {"role": "assistant", "content": "so " * 2000}] * 200
    text = ChatTemplate(CHATLOOM_TEMPLATE).render(conversation(turns))
    assert len(text) > 2_800_000


def test_each_rendering_counts_for_itself() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{{ i ~ '' if i == 89999 }}{% endfor %}")
    for _ in range(8):
        assert template.render(ASKED) == "89999"


def test_loops_still_know_where_they_are() -> None:
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '!' if loop.last }}"
        "{{ loop.nextitem.role if loop.first }};{% else %}none{% endfor %}"
        "{% for k, v in {'a': [1, 2]}.items() %}{{ k ~ v }}{% endfor %}"
        "{% for m in messages if m.role == 'user' %}{{ m.content | upper }}{{ loop.length }}{% endfor %}"
        "{{ messages | map(attribute='role') | join(',') }}{{ '%s-%d' % ('x', 2) }}{{ '{:>3}|{{}}'.format(1) }}"
        "{% for m in nothing %}{% else %} empty{% endfor %}{{ messages[1:] | length }}{{ 'a,b'.split(',') }}"
    )
    expected = "1/2assistant;2/2!;a[1, 2]WHO BAKES?1user,assistantx-2  1|{} empty1['a', 'b']"
    assert ChatTemplate(source).render(ASKED) == expected
