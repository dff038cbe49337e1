"""Chat templates in the form that this year's families publish: the switch is found, and stripped reasoning costs
only what follows it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mlxkv.chat.prompts.prompt import PromptFormat, PromptState, message
from mlxkv.errors import ModelError
from mlxkv.token_ids import common_prefix
from mlxkv.tokenizer.control_tokens import Rendered
from tests.tokenizers import THINK, tiny_tokenizer

_SHOWN = (
    "{% macro shown(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{% endmacro %}"
)
_TURNS = _SHOWN + (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and BEFORE %}{{ OLD }}{% endif %}"
    "{{ shown(m.content) }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nBEGIN"
    "{% endif %}"
)


def _chatml(begin: str, old: str = "''", before: str = "true") -> str:
    return _TURNS.replace("BEFORE", before).replace("OLD", old).replace("BEGIN", begin)


@dataclass(frozen=True)
class Family:
    """`marks`: tokens of its own. `think`: how a reply writes its reasoning. `begun`: tokens of the prompt that history
    does not repeat, with reasoning on and off."""

    template: str
    marks: tuple[str, ...] = THINK
    end: str = "<|im_end|>"
    think: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    switch: str | None = "enable_thinking"
    begun: tuple[int, int] = (0, 0)
    default: bool = True  # whether it reasons if nothing is said


OFF = "{% if enable_thinking is defined and not enable_thinking %}"
ON = "{% if enable_thinking is defined and enable_thinking %}"
_GEMMA = _SHOWN + (
    "{% set own = messages %}{% if ENABLED or messages[0].role == 'system' %}<|turn>system\n{% if ENABLED %}<|think|>\n"
    "{% endif %}{% if messages[0].role == 'system' %}{{ shown(messages[0].content) }}"
    "{% set own = messages[1:] %}{% endif %}<turn|>\n{% endif %}"
    "{% for m in own %}<|turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ shown(m.content).split('<channel|>')[-1] | trim }}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n"
    "{% if not ENABLED %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
).replace("ENABLED", "(enable_thinking | default(false))")
_MISTRAL = _SHOWN + (
    "{% if messages[0].role == 'system' %}[SYSTEM_PROMPT]{{ shown(messages[0].content) }}[/SYSTEM_PROMPT]"
    "{% set own = messages[1:] %}{% else %}{% set own = messages %}{% endif %}{% for m in own %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST]{{ shown(m.content) }}[/INST]{% elif m.role == 'assistant' %}"
    "{{ shown(m.content) }}</s>{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
_HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
FAMILIES = {
    "Qwen3.5": Family(_chatml(f"{OFF}<think>\n\n</think>\n\n{{% else %}}<think>\n{{% endif %}}"), begun=(2, 6)),
    "Qwen3.5 0.8B, off by itself": Family(
        _chatml(f"{ON}<think>\n{{% else %}}<think>\n\n</think>\n\n{{% endif %}}"), begun=(2, 6), default=False
    ),
    "Gemma 4": Family(
        _GEMMA, ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"), "<turn|>",
        ("<|channel>thought\n", "<channel|>"), begun=(0, 10), default=False,
    ),
    "Mistral 3, reasoning": Family(
        _MISTRAL, ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]", "</s>"), "</s>",
        ("[THINK]", "[/THINK]"), switch=None,
    ),
    "Nemotron 3, which keeps an empty block": Family(
        _chatml(f"{OFF}<think></think>{{% else %}}<think>\n{{% endif %}}", "'<think></think>'"),
        think=("<think>\n", "\n</think>\n"), begun=(1, 0),
    ),
    "GLM 4.7": Family(
        _SHOWN + "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}</think>{% endif %}"
        "{{ shown(m.content) }}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        f"{OFF}</think>{{% else %}}<think>{{% endif %}}{{% endif %}}",
        (*THINK, "<|user|>", "<|assistant|>", "<|system|>"), "<|user|>", ("<think>", "</think>"), begun=(1, 0),
    ),
    "LFM2.5": Family(_chatml(""), switch=None),
    "Granite": Family(
        "{% if thinking %}<|im_start|>system\nthink first<|im_end|>\n{% endif %}" + _chatml(""), switch="thinking",
        default=False,
    ),
    "gpt-oss": Family(
        _HARMONY, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"), "<|return|>",
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"), switch=None,
    ),
}  # fmt: skip


def _format(family: Family) -> PromptFormat:
    tokenizer = tiny_tokenizer(family.template, marks=[mark for mark in family.marks if mark != "<|im_end|>"])
    tokenizer.eos_token_ids = {tokenizer.get_vocab()[family.end]}
    return PromptFormat(tokenizer)


def _encode(prompts: PromptFormat, text: str) -> list[int]:
    return prompts._control.encode(Rendered(text))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_switch_of_reasoning_is_found(name: str) -> None:
    family = FAMILIES[name]
    prompts = _format(family)
    assert prompts._template.think_switch == family.switch
    on, off, unset = (prompts.render([message("user", "hi")], think=think) for think in (True, False, None))
    assert (on != off) is (family.switch is not None)
    assert unset == (on if family.default else off)
    assert bool(prompts.think_notice(True)) is (family.switch is None)


@pytest.mark.parametrize(
    ("name", "think"), [(name, think) for name in FAMILIES for think in (True, False) if think or FAMILIES[name].switch]
)
def test_only_what_was_stripped_and_what_follows_is_prefilled_again(name: str, think: bool) -> None:
    family = FAMILIES[name]
    prompts = _format(family)
    messages, state, position = [message("system", "be kind")], PromptState(), 0
    for i in range(3):
        messages = [*messages, message("user", f"question {i}")]
        prompt = prompts.prompt(messages, state, think)
        if i:
            whole = _encode(prompts, prompt.text)
            assert list(prompt.ids) == whole
            kept = common_prefix(state.ids, prompt.ids)
            assert kept >= position, "something before the reply is prefilled again"
            assert kept == common_prefix(_encode(prompts, state.text), whole), (
                "more than what follows the stripped part"
            )
            assert "thoughts" not in prompt.text
        position = prompts.num_unchanged(messages, prompt, think)
        assert len(prompt.ids) - position == family.begun[not think]
        raw = "yes" if not think else f"{family.think[0]}the thoughts{family.think[1]}yes"
        if prompts.reasoning and prompts.reasoning.state_after(prompt.text) == "thinking":
            raw = raw.removeprefix(family.think[0])
        reader, ids = prompts.reader(prompt), _encode(prompts, raw)
        for token in ids:
            reader.add(token)
        reader.finish(is_cut=False)
        assert (reader.text.strip(), reader.thinking.strip()) == ("yes", "the thoughts" if think else "")
        state = prompts.with_reply(prompt, raw, (*ids, *prompts.tokenizer.eos_token_ids))
        messages = [*messages, message("assistant", reader.text, reader.thinking)]


@pytest.mark.parametrize("name", FAMILIES)
def test_reasoning_that_is_cut_is_read_as_such(name: str) -> None:
    family = FAMILIES[name]
    prompts = _format(family)
    prompt = prompts.prompt([message("user", "why?")], PromptState(), True)
    begun = f"{family.think[0]}the thou"
    if prompts.reasoning and prompts.reasoning.state_after(prompt.text) == "thinking":
        begun = begun.removeprefix(family.think[0])
    reader, ids = prompts.reader(prompt), _encode(prompts, begun)
    assert reader.closing is not None
    for is_bare in (True, False):
        closing = reader.closing(ids, is_bare=is_bare)
        assert prompts.tokenizer.decode(closing).strip() == family.think[1].strip()
    for token in (*ids, *closing, *_encode(prompts, "yes")):
        reader.add(token)
    reader.finish()
    assert (reader.text, reader.thinking) == ("yes", "the thou")


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gpt-oss"])  # which takes no parts
def test_a_text_is_rendered_as_the_list_of_its_one_part_is(name: str) -> None:
    prompts = _format(FAMILIES[name])
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert prompts._template.render(parts) == prompts.render([message("user", "hi")])  # type: ignore[arg-type]


LISTS_ALONE = (  # as SmolVLM's; a text, iterated, has letters, which have no type
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_shows_parts_alone_gets_them() -> None:
    """It dropped every message without a word."""
    prompts = PromptFormat(tiny_tokenizer(LISTS_ALONE))
    messages = [message("system", "be kind"), message("user", "hi"), message("assistant", "yes"), message("user", "ok")]
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    assert prompts.render(messages) == f"{text}<|im_start|>assistant\n"
    with pytest.raises(ModelError, match="x"):
        PromptFormat(tiny_tokenizer("{{ raise_exception('x') }}")).render(messages)


def test_roles_that_a_template_refuses_are_refused_in_a_sentence() -> None:
    prompts = _format(FAMILIES["Mistral 3, reasoning"])
    for roles, why in (
        (("user", "user"), "roles must alternate"),
        (("user", "tool"), "roles must alternate|only user"),
    ):
        with pytest.raises(ModelError, match=why) as caught:
            prompts.render([message(role, "x") for role in roles])
        assert "refuses this chat" in str(caught.value)
