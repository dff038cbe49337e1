"""PromptFormat: sampled ids are kept where the template goes on from them, and given up where it does not."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

import mlxkv
from mlxkv.chat.prompts.prompt import PromptFormat, PromptState
from mlxkv.errors import ModelError
from mlxkv.events import Notice
from tests.chats import new
from tests.tokenizers import CHATML, DATED, DEFAULTING, FORGETFUL, tiny_folder, tiny_tokenizer

USER = {"role": "user", "content": "hi"}
DROPS_SYSTEM = CHATML.replace("for m in messages", "for m in messages if m['role'] != 'system'")
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_ids_that_were_sampled_are_kept_even_if_the_tokenizer_would_choose_others() -> None:
    prompts = PromptFormat(tiny_tokenizer())
    first = prompts.prompt([USER], PromptState())
    odd = [7, 3, 9, 2]  # 3 is a token the tokenizer itself never makes from this text; 2 ends the turn
    text = prompts.tokenizer.decode(odd[:-1])
    fed = prompts.with_reply(first, text, odd)
    second = prompts.prompt([USER, said(text), {"role": "user", "content": "and"}], fed)
    assert second.ids[: len(fed.ids)] == fed.ids
    assert second.text == prompts.render([USER, said(text), {"role": "user", "content": "and"}])


def test_a_reply_that_was_cut_off_is_closed_by_the_template() -> None:
    prompts = PromptFormat(tiny_tokenizer())
    fed = prompts.with_reply(prompts.prompt([USER], PromptState()), "abc", prompts.encode("abc"))
    second = prompts.prompt([USER, said("abc"), USER], fed)
    assert second.ids == tuple(prompts.encode(second.text))
    assert second.ids[len(fed.ids)] == 2


def test_a_template_that_rewrites_history_is_tokenized_anew() -> None:
    prompts = PromptFormat(tiny_tokenizer(FORGETFUL))
    first = prompts.prompt([USER], PromptState())
    fed = prompts.with_reply(first, "abc", [*prompts.encode("abc"), 2])
    second = prompts.prompt([USER, said("abc"), USER], fed)
    assert second.ids == tuple(prompts.encode(second.text))
    assert second.ids[: len(first.ids)] == first.ids
    assert second.ids[: len(fed.ids)] != fed.ids


def test_without_a_template_texts_continue_each_other() -> None:
    prompts = PromptFormat(tiny_tokenizer(None))
    assert not prompts.has_template
    first = prompts.prompt([{"role": "system", "content": "be"}, USER], PromptState())
    assert first.ids == tuple(prompts.encode("be\n\nhi"))
    fed = prompts.with_reply(first, "abc", prompts.encode("abc"))
    assert prompts.prompt([USER, said("abc"), {"role": "user", "content": "x"}], fed).ids == (
        *fed.ids,
        *prompts.encode("x"),
    )


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_a_template_without_a_system_role_gets_it_in_the_first_message(template: str) -> None:
    prompts = PromptFormat(tiny_tokenizer(template))
    text = prompts.render([{"role": "system", "content": "be"}, USER])
    assert "be\n\nhi" in text
    assert prompts.num_system_tokens("be") > 0


NO_PLACE = "This model's chat template has no system role: the first message begins with the system prompt."
NO_TEMPLATE = "This model has no chat template: the messages are passed as raw text, one after the other."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "system", "told"),
    [
        (REFUSES_SYSTEM, "be", [NO_PLACE]),
        (DROPS_SYSTEM, "be", [NO_PLACE]),
        (DROPS_SYSTEM, None, []),
        (CHATML, "be", []),
        (None, "be", [NO_TEMPLATE]),
        (None, None, [NO_TEMPLATE]),
    ],
)
def test_what_a_chat_misses_is_told_once(
    template: str | None, system: str | None, told: list[str], tmp_path: Path
) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "m", template=template)))

    def notices(chat: mlxkv.Chat, text: str) -> list[str]:
        return [event.text for event in chat.send(text) if isinstance(event, Notice)]

    chat = new(model, system=system, autosave=True)
    assert notices(chat, "hi") == told
    assert notices(chat, "and?") == []
    session = chat.session_id
    assert session
    chat.close()
    with model.resume(session) as again:
        assert notices(again, "and then?") == []


def test_a_template_that_refuses_everything_is_an_error_of_one_sentence() -> None:
    prompts = PromptFormat(tiny_tokenizer("{{ raise_exception('never') }}"))
    with pytest.raises(ModelError, match="never"):
        prompts.render([USER])


def test_system_tokens_are_the_systems_own_turn() -> None:
    prompts = PromptFormat(tiny_tokenizer())
    alone = prompts.encode("<|im_start|>system\nbe<|im_end|>\n")
    assert prompts.num_system_tokens("be") == len(alone)
    assert prompts.num_system_tokens(None) == 1  # what begins any message
    whole = prompts.prompt([{"role": "system", "content": "be"}, USER], PromptState())
    assert list(whole.ids[: len(alone)]) == alone


@pytest.mark.parametrize("refuses", [False, True], ids=["any order", "users first"])
def test_what_the_template_itself_writes_before_the_first_message_counts_as_system_tokens(refuses: bool) -> None:
    first = "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('a user comes first') }}{% endif %}"
    prompts = PromptFormat(tiny_tokenizer((first if refuses else "") + DEFAULTING))
    header = len(prompts.encode("user\n"))
    front = len(prompts.encode("<s><|im_start|>system\nyou are tiny<|im_end|>\n<|im_start|>"))
    assert prompts.num_system_tokens(None) == front + (header if refuses else 0)
    assert prompts.num_system_tokens("be") == len(prompts.encode("<s><|im_start|>system\nbe<|im_end|>\n"))
    assert PromptFormat(tiny_tokenizer("{{ raise_exception('never') }}")).num_system_tokens(None) == 0


# Puts the system prompt in front of the first message, as Gemma 3's does; of a system prompt alone nothing is left.
IN_FRONT = (
    "<s>{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<|im_start|>{{ m['role'] }}\n{{ first if loop.first else '' }}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_system_prompt_that_comes_with_the_first_message_is_pinned() -> None:
    prompts = PromptFormat(tiny_tokenizer(IN_FRONT))
    assert prompts.num_system_tokens("be") == len(prompts.encode("<s><|im_start|>user\nbe\n\n"))


def test_a_format_at_a_time_prints_that_time() -> None:
    prompts = PromptFormat(tiny_tokenizer(DATED))
    assert prompts.prints_time
    assert not PromptFormat(tiny_tokenizer()).prints_time
    then = datetime.fromisoformat("2026-02-03T23:59:00+13:00")
    assert "today 2026-02-03 23" in prompts.at(then).render([USER])  # the wall's time there, wherever this runs
    assert "today 2026-02-03" not in prompts.render([USER])
