"""Chat templates render as transformers renders them, by the chat's own clock; whatever one fails with is a sentence."""

# ruff: noqa: E501

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from mlxkv.chat.prompts.prompt import PromptFormat, PromptState
from mlxkv.errors import ModelError
from mlxkv.tokenizer.chat_template import ChatTemplate
from tests.thorough import part
from tests.tokenizers import CHATML, THINK, tiny_tokenizer

MESSAGES = [
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "ok"},
]

HONEST = {
    "ChatML": CHATML,
    "what templates use": (
        "{%- set ns = namespace(last=0, seen=[]) -%}{%- macro head(role) -%}<{{ role | upper }}>{%- endmacro -%}"
        "{%- for m in messages -%}{%- if loop.index0 > 0 and m.role in ['user', 'tool'] -%}{%- set ns.last = loop.index0 -%}"
        "{%- endif -%}{{- head(m['role']) + m.content | trim ~ '\\n' -}}{%- if not loop.last %}, {% endif -%}{%- endfor -%}"
        "{{ messages[::-1] | map(attribute='content') | join('|') }}{{ messages | tojson(indent=2) }}{{ ns.last }}"
        "{{ '%s-%03d' % ('a', 7) }}{{ '{:>5}'.format('x') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ messages[0].content.split(' ')[-1].strip().replace('t', 'T') }}{{ 2 ** 10 + 7 // 2 }}{{ 'é' | e }}"
        "{% if tools is defined and tools %}tools{% endif %}{% generation %}g{% endgeneration %}{{ eos_token }}"
        "{% for i in range(5) if i % 2 %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% else %}none{% endfor %}"
    ),
}

FAILING = {
    "its own refusal": ("{{ raise_exception('roles must alternate\\nsecond line') }}", "roles must alternate"),
    "a syntax error": ("{% for m in messages %}{{ m.content }}", "Unexpected end of template"),
    "an undefined name": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "a wrong type": ("{{ messages[0].content + 1 }}", "can only concatenate str"),
    "a wrong value": ("{{ '%d' % 'x' }}", "%d format"),
    "a missing key": ("{{ {}.pop('x') }}", ""),
    "a division by zero": ("{{ 1 // 0 }}", "by zero"),
    "a macro that calls itself": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
    "what the sandbox forbids": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "a range over the sandbox's limit": ("{% for a in range(10 ** 9) %}x{% endfor %}", "Range too big"),
    "lipsum": ("{{ lipsum(n='many') }}", "str"),
    "groupby of what is not there": ("{{ messages | groupby('a.b') | list }}", "no attribute 'a'"),
    "more text than memory": ("{{ 'a' * 10 ** 16 }}", "MemoryError"),
    "a longer text than there can be": ("{{ 'a' * 10 ** 40 }}", "cannot fit"),
    "a number of too many digits": ("{{ 10 ** 5000 }}", "digits"),
    "nested lists": ("{{ " + "[" * 10_000 + "]" * 10_000 + " }}", "recursion"),
    "nested parentheses": ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "recursion"),
    "nested dictionaries": ("{{ " + "{1:" * 10_000 + "1" + "}" * 10_000 + " }}", "recursion"),
    "nested blocks": ("{% if 1 %}" * 10_000 + "{% endif %}" * 10_000, "recursion"),
    "a long sum": ("{{ " + "x + " * 10_000 + "x }}", "recursion"),
    "deep data": (
        "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "recursion",
    ),
    "another file": ("{% include 'config.json' %}", "loader"),
    "another template": ("{% extends '/etc/passwd' %}", "loader"),
    "an import": ("{% import 'os' as os %}", "loader"),
    "a filter that reads attributes": (
        "{{ messages | map(attribute='__class__') | list | first | attr('mro') }}",
        "unsafe",
    ),
    "a constructor's globals": ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    "a list that is changed": ("{{ messages.append(1) }}", "unsafe"),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_template_renders_as_transformers_does(name: str) -> None:
    tokenizer = tiny_tokenizer(HONEST[name])
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert PromptFormat(tokenizer).render(MESSAGES) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", part(FAILING, 2))
def test_whatever_a_template_fails_with_is_one_sentence(name: str) -> None:
    template, why = FAILING[name]
    tokenizer = tiny_tokenizer(template)
    tokenizer._tokenizer.name_or_path = "models/odd"
    tokenizer.chat_template_file = "chat_template.jinja"
    with pytest.raises(ModelError) as caught:
        PromptFormat(tokenizer).render([{"role": "system", "content": "be"}, *MESSAGES])
    text = str(caught.value)
    assert text.startswith("The chat template of models/odd (chat_template.jinja) refuses this chat (")
    assert why in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception.__globals__ }}", "{{ strftime_now.__code__ }}", "{{ '{0.__class__.__init__}'.format(messages) }}",
     "{{ self._TemplateReference__context }}", "{{ ''['__class__'] }}"],
)  # fmt: skip
def test_the_sandbox_shows_a_template_nothing_of_python(template: str) -> None:
    assert PromptFormat(tiny_tokenizer(template)).render(MESSAGES) == ""


class Panic(BaseException):
    """As what Rust's panics arrive as."""


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), Panic("index out of range")], ids=repr)
def test_errors_that_are_no_templates_own_are_sentences_too(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = PromptFormat(tiny_tokenizer())

    def fail(*_: Any, **__: Any) -> list[int]:
        raise error

    monkeypatch.setattr(ChatTemplate, "_compiled", property(fail))
    with pytest.raises(ModelError, match=str(error) or type(error).__name__):
        prompts.render(MESSAGES)
    monkeypatch.undo()
    monkeypatch.setattr(prompts.tokenizer._tokenizer, "encode", fail)
    with pytest.raises(ModelError, match=r"^The tokenizer of this model cannot encode this text \("):
        prompts.prompt(MESSAGES, PromptState())


def test_ctrl_c_while_a_template_renders_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: ChatTemplate) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatTemplate, "_compiled", property(interrupt))
    with pytest.raises(KeyboardInterrupt):
        PromptFormat(tiny_tokenizer()).render(MESSAGES)


def test_a_template_tells_the_time_it_is_given() -> None:
    dated = (
        "{% macro today() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ today() }} {{ strftime_now('%H') }}|"
        + CHATML
    )
    template = ChatTemplate(tiny_tokenizer(dated))
    assert template.render(MESSAGES, clock=datetime(2024, 2, 29, 7)).startswith("29 Feb 2024 07|")
    assert template.render(MESSAGES).startswith(datetime.now().strftime("%d %b %Y"))


def test_a_template_cannot_change_what_was_said() -> None:
    template = "{% for m in messages %}{% set _ = m.update({'content': 'x'}) %}{{ m.content }}{% endfor %}"
    messages = [dict(m) for m in MESSAGES]
    with pytest.raises(ModelError):
        PromptFormat(tiny_tokenizer(template)).render(messages)
    assert messages == MESSAGES


def test_without_a_word_about_reasoning_the_template_decides() -> None:
    default_off = CHATML + "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
    prompts = PromptFormat(tiny_tokenizer(default_off, marks=THINK))
    assert prompts.tokenizer.has_thinking
    assert not prompts.render(MESSAGES).endswith("<think>")
    assert prompts.render(MESSAGES, think=True).endswith("<think>")


DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{% generation %}"
    + CHATML
    + "{% endgeneration %}"
    "{% if thinking %}<think>{% else %}</think>{% endif %}"
)
SWITCHES = {
    "Qwen": (
        CHATML + "{% if enable_thinking is defined and enable_thinking is false %}x{% endif %}",
        "enable_thinking",
    ),
    "DeepSeek": (DEEPSEEK, "thinking"),
    "Granite": (CHATML + "{%- if thinking %}<think>{% endif %}", "thinking"),
    "in a macro": (
        CHATML + "{% macro end() %}{% if thinking %}<think>{% endif %}{% endmacro %}{{ end() }}",
        "thinking",
    ),
    "both": (CHATML + "{% if thinking or enable_thinking %}<think>{% endif %}", "enable_thinking"),
    "none": (CHATML, None),
    "a field, a string and a comment": (
        CHATML + "{# thinking #}{{ 'enable_thinking' }}{{ messages[0].thinking }}",
        None,
    ),
    "a variable of its own": ("{% set thinking = 1 %}" + CHATML + "{% if thinking %}x{% endif %}", None),
    "not a template": ("{% if %}", None),
    "raw text": (None, None),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_reasoning_is_switched_by_the_variable_that_the_template_reads(name: str) -> None:
    source, switch = SWITCHES[name]
    prompts = PromptFormat(tiny_tokenizer(source, marks=THINK))
    assert prompts.has_think_switch is (switch is not None)
    assert [bool(prompts.think_notice(think)) for think in (None, True, False)] == [
        False,
        not switch,
        not switch and bool(source),
    ]
    if switch:
        plain = prompts.tokenizer._tokenizer.apply_chat_template
        for think in (True, False):
            expected = plain(MESSAGES, tokenize=False, add_generation_prompt=True, **{switch: think})
            assert prompts.render(MESSAGES, think=think) == expected
        assert prompts.render(MESSAGES, think=True) != prompts.render(MESSAGES, think=False)


def test_a_model_that_never_reasons_does_as_it_is_told_not_to() -> None:
    prompts = PromptFormat(tiny_tokenizer())
    assert [bool(prompts.think_notice(think)) for think in (None, True, False)] == [False, True, False]


def test_a_renderer_written_in_python_is_used_as_mlx_lm_uses_it() -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer._chat_template = lambda messages, **more: "|".join(m["content"] for m in messages) + str(sorted(more))
    tokenizer.has_chat_template = True
    assert PromptFormat(tokenizer).render(MESSAGES) == tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )


def test_a_chat_goes_on_after_a_refusal() -> None:
    prompts = PromptFormat(
        tiny_tokenizer("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}" + CHATML)
    )
    with pytest.raises(ModelError):
        prompts.prompt(MESSAGES, PromptState())
    assert prompts.prompt(MESSAGES[:1], PromptState()).ids
