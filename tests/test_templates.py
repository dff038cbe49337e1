"""Hostile chat templates are refused in a sentence, at once and in little memory; honest ones render as ever."""

# ruff: noqa: E501

from __future__ import annotations

import resource

import pytest

from mlxkv import templates
from mlxkv.errors import ModelError
from mlxkv.prompt import Fed, PromptFormat
from tests.tokenizers import CHATML, tiny_tokenizer

MESSAGES = [
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "ok"},
]

HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that filter all away": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "loops that take nothing": "{% for a in range(99) %}{% for b in range(9999) if [] %}{% endfor %}{% endfor %}",
    "a loop over more than the sandbox allows": "{% for a in range(10 ** 9) %}x{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "text doubled": "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "text added to itself": "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "text multiplied": "{{ 'x' * 10 ** 10 }}",
    "a list multiplied": "{{ ([0] * 10 ** 9) | length }}",
    "a list of lists of itself": "{% set n = namespace(s=[0]) %}{% for a in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "a tower of powers": "{{ 9 ** (9 ** 9) }}",
    "a number squared again and again": "{% set n = namespace(s=3) %}{% for a in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "a wide field": "{{ 'x' | center(10 ** 10) }}",
    "a wide method": "{{ 'x'.ljust(10 ** 10) }}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a wide format with a star": "{{ '%*d' % (9999999, 1) }}",
    "a wide str.format": "{{ '{:>9999999999}'.format(1) }}",
    "a width from an argument": "{{ '{:>{w}}'.format(1, w='9999999999') }}",
    "a wide format filter": "{{ '%9999999999d' | format(1) }}",
    "replacing each letter": "{% set s = 'x' * 90000 %}{{ s.replace('x', s) }}",
    "replacing by a filter": "{% set s = 'x' * 90000 %}{{ s | replace('x', s) }}",
    "joining with much": "{% set s = 'x' * 90000 %}{{ s.join(s | list) }}",
    "joining a generator": "{% set s = 'x' * 90000 %}{{ s | map('upper') | join(s) }}",
    "tabs": "{{ ('\\t' * 90000).expandtabs(90000) }}",
    "indented JSON": "{{ range(90000) | list | tojson(indent=90000) }}",
    "rounding": "{{ 1 | round(10 ** 9) }}",
    "blocks": "{% set s %}{{ 'x' * 90000 }}{% endset %}{% for a in range(99999) %}{{ s }}{% endfor %}",
    "searching again and again": "{% set s = range(9000) | list %}{% for a in s %}{% if -1 in s %}{% endif %}{% endfor %}",
    "comparing again and again": "{% set s = 'x' * 900000 %}{% set t = s ~ '' %}{% for a in range(9000) %}{{ s == t }}{% endfor %}",
    "a test again and again": "{% set s = 'x' * 900000 %}{% set t = s ~ '' %}{% for a in range(9000) %}{{ s is eq(t) }}{% endfor %}",
    "slicing again and again": "{% set s = 'x' * 900000 %}{% for a in range(9000) %}{% set t = s[1:] %}{% endfor %}",
    "sorting again and again": "{% set s = range(9000) | list %}{% for a in s %}{% set t = s | sort %}{% endfor %}",
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that is soon used up. Loops of 9,000 turns are within it: what they do has to be counted."""
    monkeypatch.setattr(templates, "MAX_STEPS", templates.MAX_STEPS // 25)
    monkeypatch.setattr(templates, "MAX_UNITS", templates.MAX_UNITS // 25)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("small")
def test_a_hostile_template_is_refused(name: str) -> None:
    prompts = PromptFormat(tiny_tokenizer(HOSTILE[name]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        prompts.render(MESSAGES)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000  # kB
    text = str(caught.value)
    assert text.startswith("The model's chat template refuses this chat (")
    assert "\n" not in text


HONEST = {
    "ChatML": CHATML,
    "what templates use": (
        "{%- set ns = namespace(last=0, seen=[]) -%}{%- macro head(role) -%}<{{ role | upper }}>{%- endmacro -%}"
        "{%- for m in messages -%}{%- if loop.index0 > 0 and m.role in ['user', 'tool'] -%}{%- set ns.last = loop.index0 -%}"
        "{%- endif -%}{{- head(m['role']) + m.content | trim ~ '\\n' -}}{%- if not loop.last %}, {% endif -%}{%- endfor -%}"
        "{{ messages[::-1] | map(attribute='content') | join('|') }}{{ messages | tojson(indent=2) }}{{ ns.last }}"
        "{{ '%s-%03d' % ('a', 7) }}{{ '{:>5}'.format('x') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ messages[0].content.split(' ')[-1].strip().replace('t', 'T') }}{{ 2 ** 10 + 7 // 2 }}{{ 'é' | e }}"
        "{% if tools is defined and tools %}tools{% endif %}{% generation %}g{% endgeneration %}"
        "{% for i in range(5) if i % 2 %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% else %}none{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_template_renders_as_transformers_does(name: str) -> None:
    tokenizer = tiny_tokenizer(HONEST[name])
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert PromptFormat(tokenizer).render(MESSAGES) == expected
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == expected


def test_a_long_chat_is_no_attack() -> None:
    """A thousand messages, two of them a book."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": "so " * 200} for i in range(1001)]
    messages[0]["content"] = messages[-1]["content"] = "word " * 500_000
    text = PromptFormat(tiny_tokenizer()).render(messages)
    assert text.count("<|im_start|>") == 1002


def test_each_rendering_has_a_budget_of_its_own() -> None:
    prompts = PromptFormat(tiny_tokenizer("{% for a in range(60000) %}{% endfor %}{{ messages[0].content }}"))
    for _ in range(5):
        assert prompts.render(MESSAGES) == "hi there"


def test_the_whole_budget_is_a_moment() -> None:
    assert templates.MAX_STEPS <= 250_000
    prompts = PromptFormat(tiny_tokenizer(HOSTILE["nested loops"]))
    with pytest.raises(ModelError, match="more than 250,000 steps"):
        prompts.render(MESSAGES)


def test_a_refused_template_is_not_tried_again_without_its_system_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer(HOSTILE["text multiplied"])
    tried = []
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: tried.append(a) or render(*a, **k))
    with pytest.raises(ModelError):
        PromptFormat(tokenizer).render([{"role": "system", "content": "be"}, *MESSAGES])
    assert len(tried) == 1


def test_transformers_is_left_as_it_was() -> None:
    from transformers.utils import chat_template_utils as library

    before = library._compile_jinja_template
    for name in ("text multiplied", "nested loops"):
        with pytest.raises(ModelError):
            PromptFormat(tiny_tokenizer(HOSTILE[name])).render(MESSAGES)
        assert library._compile_jinja_template is before


def test_a_chat_goes_on_after_a_refusal() -> None:
    prompts = PromptFormat(tiny_tokenizer(HOSTILE["nested loops"]))
    with pytest.raises(ModelError):
        prompts.prompt(MESSAGES, Fed())
    assert PromptFormat(tiny_tokenizer()).prompt(MESSAGES, Fed()).ids
