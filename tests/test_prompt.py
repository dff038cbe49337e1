"""PromptFormat: sampled ids are kept where the template goes on from them, and given up where it does not."""

from __future__ import annotations

import pytest

from mlxkv.errors import ModelError
from mlxkv.prompt import Fed, PromptFormat
from tests.tokenizers import CHATML, FORGETFUL, tiny_tokenizer

USER = {"role": "user", "content": "hi"}
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_ids_that_were_sampled_are_kept_even_if_the_tokenizer_would_choose_others() -> None:
    prompts = PromptFormat(tiny_tokenizer())
    first = prompts.prompt([USER], Fed())
    odd = [7, 3, 9, 2]  # 3 is a token the tokenizer itself never makes from this text; 2 ends the turn
    text = prompts.tokenizer.decode(odd[:-1])
    fed = prompts.replied(first, text, odd)
    second = prompts.prompt([USER, said(text), {"role": "user", "content": "and"}], fed)
    assert second.ids[: len(fed.ids)] == fed.ids
    assert second.text == prompts.render([USER, said(text), {"role": "user", "content": "and"}])


def test_a_reply_that_was_cut_off_is_closed_by_the_template() -> None:
    prompts = PromptFormat(tiny_tokenizer())
    fed = prompts.replied(prompts.prompt([USER], Fed()), "abc", prompts.encode("abc"))
    second = prompts.prompt([USER, said("abc"), USER], fed)
    assert second.ids == tuple(prompts.encode(second.text))
    assert second.ids[len(fed.ids)] == 2


def test_a_template_that_rewrites_history_is_tokenized_anew() -> None:
    prompts = PromptFormat(tiny_tokenizer(FORGETFUL))
    first = prompts.prompt([USER], Fed())
    fed = prompts.replied(first, "abc", [*prompts.encode("abc"), 2])
    second = prompts.prompt([USER, said("abc"), USER], fed)
    assert second.ids == tuple(prompts.encode(second.text))
    assert second.ids[: len(first.ids)] == first.ids
    assert second.ids[: len(fed.ids)] != fed.ids


def test_without_a_template_texts_continue_each_other() -> None:
    prompts = PromptFormat(tiny_tokenizer(None))
    assert not prompts.has_template
    first = prompts.prompt([{"role": "system", "content": "be"}, USER], Fed())
    assert first.ids == tuple(prompts.encode("be\n\nhi"))
    fed = prompts.replied(first, "abc", prompts.encode("abc"))
    assert prompts.prompt([USER, said("abc"), {"role": "user", "content": "x"}], fed).ids == (
        *fed.ids,
        *prompts.encode("x"),
    )


def test_a_template_without_a_system_role_gets_it_in_the_first_message() -> None:
    prompts = PromptFormat(tiny_tokenizer(REFUSES_SYSTEM))
    text = prompts.render([{"role": "system", "content": "be"}, USER])
    assert "be\n\nhi" in text
    assert prompts.num_system_tokens("be") > 0


def test_a_template_that_refuses_everything_is_an_error_of_one_sentence() -> None:
    prompts = PromptFormat(tiny_tokenizer("{{ raise_exception('never') }}"))
    with pytest.raises(ModelError, match="never"):
        prompts.render([USER])


def test_system_tokens_are_the_systems_own_turn() -> None:
    prompts = PromptFormat(tiny_tokenizer())
    alone = prompts.encode("<|im_start|>system\nbe<|im_end|>\n")
    assert prompts.num_system_tokens("be") == len(alone)
    assert prompts.num_system_tokens(None) == 0
    whole = prompts.prompt([{"role": "system", "content": "be"}, USER], Fed())
    assert list(whole.ids[: len(alone)]) == alone
