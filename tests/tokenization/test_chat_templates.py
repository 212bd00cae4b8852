"""Templates give what `transformers` gives, and one that would not come to an end is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from ste_jax.system.errors import RequestError
from ste_jax.tokenization.chat_templates import ChatTemplate
from ste_jax.tokenization.load import load_tokenizer
from tests import chats

CHAT = [
    {"role": "system", "content": "Be <b>fair</b> & brief.\n\n"},
    {"role": "user", "content": "  Naïve 東京 {{ x }}  "},
    {"role": "assistant", "content": "<think>\nso\n</think>\n\nYes"},
    {"role": "user", "content": "Sure?"},
]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
# What published templates do, beside those of `chats`.
WRITTEN = [
    *(text for name, text in chats.TEMPLATES.items() if name not in ("inst", "no_system")),
    "{% set ns = namespace(n=0, last='') %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.last = m.content | trim %}{% endfor %}{{ ns.n }} {{ ns.last }} {{ bos_token }}",
    "{%- for m in messages -%}\n  {% generation %}\n{% set x = m.role %}{{ m.content }}"
    "{% endgeneration %}\n{{ x is defined }}\n{%- endfor -%}",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ loop.index0 }}"
    "{{ loop.last }}{{ loop.length }}{{ loop.previtem is defined }}"
    "{{ loop.nextitem is defined }}{% endfor %}",
    "{% macro turn(m, mark='#') %}{{ mark ~ m['role'] ~ '\n' ~ caller() }}{% endmacro %}"
    "{% for m in messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{% call turn(m, mark=m.role | upper) %}{{ m.content | replace('\n', ' ') }}{% endcall %}"
    "{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson }}{{ {'a': 1} | items | list }}",
    "{{ messages | map(attribute='content') | join('|') | indent(2) }}"
    "{{ '%s-%02d' | format('a', 7) }}{{ '{} {!r}'.format('b', 3) }}{{ 'x' * 3 + '%s' % 'y' }}"
    "{{ 2 ** 5 }}{{ 7 // 2 * 3 - 1 }}",
    "{{ messages[0].content.split('\n')[0].startswith('Be') }}"
    "{{ messages[1]['content'].strip()[:5] }}{{ tools is none }}{{ documents }}"
    "{{ dict(a=1).a }}{{ 'Sure' in messages[-1].content }}",
    "{% if add_generation_prompt %}{{ 'ask' }}{% elif not add_generation_prompt %}said{% endif %}"
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
]


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("prompt", [True, False])
def test_a_template_gives_what_the_reference_gives(text: str, prompt: bool) -> None:
    (expected,), _ = render_jinja_template(
        [CHAT], chat_template=text, add_generation_prompt=prompt, **NAMES
    )
    template = ChatTemplate(text)
    # Twice: nothing of the first rendering is left over.
    for _ in range(2):
        assert template.render(CHAT, prompt, **NAMES) == expected


def grows(step: str) -> str:
    return (
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}" + step + "{% endfor %}{{ ns.x }}"
    )


ENDLESS = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}"
    "{% endfor %}",
    "a long loop": "{% for i in range(10**9) %}x{% endfor %}",
    "loops over texts": "{% set s = 'x' * 9999 %}{% for a in s %}{% for b in s %}{% endfor %}"
    "{% endfor %}",
    "filters in loops": "{% for a in range(99999) %}{{ range(99999) | list | sort | length }}"
    "{% endfor %}",
    "searches": "{% set s = 'x' * 10**7 %}{% for a in range(99999) %}{% if 'y' in s %}{% endif %}"
    "{% endfor %}",
    "slices": "{% set s = 'x' * 10**7 %}{% for a in range(99999) %}{% set t = s[::-1] %}"
    "{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "a loop that calls itself": "{% for a in [[1]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "many times a text": "{{ 'x' * 10**10 }}",
    "many times a text, turned": "{{ 10**10 * 'x' }}",
    "many times a list": "{{ [0] * 10**10 }}",
    "a large number": "{{ 10**(10**10) }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}",
    "doubled by ~": grows("{% set ns.x = ns.x ~ ns.x %}"),
    "doubled by +": grows("{% set ns.x = ns.x + ns.x %}"),
    "doubled by a block": grows("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "doubled by join": grows("{% set ns.x = [ns.x, ns.x] | join(ns.x) %}"),
    "doubled by join, a method": grows("{% set ns.x = ns.x.join([ns.x, ns.x]) %}"),
    "doubled by replace": grows("{% set ns.x = ns.x | replace('x', ns.x) %}"),
    "doubled by replace, a method": grows("{% set ns.x = ns.x.replace('x', ns.x) %}"),
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a width given": "{{ '%*d' % (10**9, 1) }}",
    "a wide format, a filter": "{{ '%1000000000d' | format(1) }}",
    "a wide format, a method": "{{ '{:1000000000}'.format(1) }}",
    "a width given, a method": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "centered": "{{ 'x' | center(10**10) }}",
    "centered, a method": "{{ 'x'.center(10**10) }}",
    "padded": "{{ ''.ljust(10**10) }}",
    "bytes": "{{ (1).to_bytes(10**10) }}",
    "indented": "{{ ('a\n' * 100000) | indent(100000) }}",
    "indented JSON": "{{ [1] | tojson(indent=10**9) }}",
    "filler": "{{ lipsum(10**7) }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_is_refused_in_time(name: str) -> None:
    before = time.process_time()
    with pytest.raises((jinja2.TemplateError, OverflowError, RecursionError)):
        ChatTemplate(ENDLESS[name]).render(CHAT, True)
    assert time.process_time() - before < 20  # a second or two


def test_a_long_chat_is_within_the_budget() -> None:
    long = [{"role": "user", "content": "word " * 200_000}] * 5
    template = ChatTemplate(chats.TEMPLATES["headers"])
    assert len(template.render(long, True, **NAMES)) > 5 * 999_999
    many = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 2_000
    assert ChatTemplate(chats.TEMPLATES["thinks"]).render(many, True).count("x") == 4_000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{ raise_exception('no\nsuch turn') }}", r"\(no such turn\)"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ nothing() }}", "'nothing' is undefined"),
        (ENDLESS["loops in loops"], "does not come to an end"),
        (ENDLESS["a long loop"], "OverflowError"),
        (ENDLESS["a macro that calls itself"], "RecursionError"),
        ("{% for m in messages %}", "cannot be read"),
        (ENDLESS["brackets"], "cannot be read"),
        ("{{ x | center(3) }}", "No filter named 'center'"),
    ],
)
def test_loading_such_a_template_is_one_sentence(text: str, told: str, tmp_path: Path) -> None:
    path = chats.write(chats.byte_level(), tmp_path, chats.TEMPLATES["chatml"])
    (path / "chat_template.jinja").write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=rf"chat template .*{told}") as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_a_template_that_fails_for_some_chats_fails_for_those(tmp_path: Path) -> None:
    text = chats.TEMPLATES["chatml"] + (
        "{% for m in messages if 'loop' in m.content %}"
        + ENDLESS["loops in loops"]
        + "{% endfor %}"
    )
    ours = load_tokenizer(chats.write(chats.byte_level(), tmp_path, text))

    def ids(content: str) -> Any:
        return ours.prompt_ids([{"role": "user", "content": content}])

    before = ids("fine")
    with pytest.raises(RequestError, match=r"of these roles: user \(it does not come to an end"):
        ids("loop")
    assert ids("fine") == before
