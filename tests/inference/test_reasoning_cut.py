"""The end of the reasoning after a budget, or when it is asked for: the same ids as if the model had ended it there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map_with_path

import mlxkv
from mlxkv.chat.prompts.prompt import PromptFormat
from mlxkv.events import Notice, TextDelta
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.model import Model
from mlxkv.stats import stat_line
from tests.chats import CONFIG, say
from tests.inference.drafting.helpers import OpenGate, Oracle
from tests.tokenizers import CHATML, OPENING, STRIPPING, THINK, VOCAB, tiny_folder, tiny_tokenizer

BUDGET, MOST = 7, 24
CLOSING = "\n</think>\n\n"
BLANKS = [tiny_tokenizer().get_vocab()[char] for char in " \n"]
NEVER = dict.fromkeys([0, 1, 2, 3, *range(55, VOCAB), *BLANKS], -1000.0)  # no end of turn, no marker
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": MOST, "logit_bias": NEVER}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Its prompts open the reasoning; its weights are so large that each token depends on those before it."""
    folder = tiny_folder(tmp_path_factory.mktemp("m"), tokenizer=tiny_tokenizer(OPENING, marks=THINK))
    with mlxkv.load(str(folder), draft=False) as model:
        layers: Any = model.loaded.model.layers
        for layer in layers:
            layer.update(tree_map_with_path(lambda name, w: w * 8 if "proj" in name else w, layer.parameters()))
        yield model


def new(model: Model, **more: Any) -> mlxkv.Chat:
    return model.chat(cache=CONFIG, **GREEDY, **more)


def prompt_and_reply(chat: mlxkv.Chat) -> tuple[list[int], list[int]]:
    reply = list(chat.turns[-1].ids)
    return list(chat.log[: -len(reply)]), reply


def plain(model: Model, ids: list[int], count: int) -> list[int]:
    """What the model alone writes after `ids`, computed anew for each token."""
    bias, out = mx.zeros((VOCAB,)), list[int]()
    bias[mx.array(list(NEVER))] = -1000.0
    for _ in range(count):
        out.append(int(mx.argmax(model.loaded.model(mx.array([[*ids, *out]]))[0, -1] + bias).item()))  # type: ignore[arg-type]
    return out


def expected(model: Model, prompt: list[int], budget: int, most: int = MOST) -> list[int]:
    """`most` tokens: `budget` of reasoning, its end and the answer."""
    begun = [*plain(model, prompt, budget), *PromptFormat(model.tokenizer).encode(CLOSING)][:most]
    return [*begun, *plain(model, [*prompt, *begun], most - len(begun))]


@pytest.mark.parametrize(("budget", "most", "drafts"), [(0, 12, False), (BUDGET, MOST, False), (40, 56, True)])
def test_the_reply_is_what_the_plain_model_writes_after_the_cut(
    model: Model, budget: int, most: int, drafts: bool
) -> None:
    prompts, chat = PromptFormat(model.tokenizer), new(model, thinking_budget=budget)
    prompt = prompts.encode("<|im_start|>user\nis it?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    ids = expected(model, prompt, budget, most)
    if drafts:
        model.runner.drafting = Drafting(OpenGate(), Oracle([*prompt, *ids], VOCAB))
    try:
        done = say(chat, "is it?", max_tokens=most)
    finally:
        model.runner.drafting = None
    assert prompt_and_reply(chat) == (prompt, ids)
    assert done.stats.reasoning_cut_at == budget
    assert (done.stats.accepted_tokens > 0) is drafts
    assert f"reasoning cut at {budget} tokens" in stat_line(done.stats)
    assert done.text == model.tokenizer.decode(ids[budget + 4 :])
    say(chat, "and?")
    second, answer = prompt_and_reply(chat)
    assert answer == expected(model, second, budget)


def test_below_the_budget_nothing_is_cut(model: Model) -> None:
    for budget in (MOST, MOST + 1, None):
        assert say(new(model, thinking_budget=budget), "is it?").stats.reasoning_cut_at is None
    chat = new(model, thinking_budget=3)
    chat.thinking = False  # the template closes the reasoning
    assert say(chat, "is it?").stats.reasoning_cut_at is None


def test_reasoning_that_the_reply_opens_itself(model: Model) -> None:
    """Its marker does not count, and a reply to continue has used up a part."""
    tokenizer = tiny_tokenizer(STRIPPING, marks=THINK)
    opening = tokenizer.get_vocab()["<think>"]

    def opens(ids: mx.array, logits: mx.array) -> mx.array:
        if ids[-1].item() == tokenizer.get_vocab()["\n"] and opening not in ids.tolist():  # type: ignore[operator]
            logits[:, opening] = 2000.0
        return logits

    prompts, model._runtime.prompts = model._runtime.prompts, PromptFormat(tokenizer)
    try:
        chat = new(model, thinking_budget=BUDGET)
        assert say(chat, "is it?", processors=[opens], max_tokens=5).stats.reasoning_cut_at is None
        *_, done = chat.continue_reply(max_tokens=MOST)
    finally:
        model._runtime.prompts = prompts
    prompt, reply = prompt_and_reply(chat)
    assert reply[0] == opening
    assert reply[1 : MOST + 1] == expected(model, [*prompt, opening], BUDGET)
    assert isinstance(done, mlxkv.TurnFinished)
    assert done.stats.reasoning_cut_at == BUDGET


def test_a_batch_has_the_same_replies(model: Model) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("is it?", "who", "why so?")]
    found = model.generate_batch(prompts, cache=CONFIG, thinking_budget=BUDGET, **GREEDY)
    assert all(reply.stats.batched for reply in found)
    for prompt, reply in zip(prompts, found, strict=True):
        chat = new(model, thinking_budget=BUDGET)
        say(chat, prompt[0]["content"])
        assert list(reply.tokens) == prompt_and_reply(chat)[1]
        assert reply.stats.reasoning_cut_at == BUDGET


def test_a_schema_and_logprobs_begin_where_the_cut_ends(model: Model) -> None:
    done = say(new(model, thinking_budget=BUDGET, logprobs=1), "is it?", schema=re.compile("[a-c]{5}[.]"))
    assert re.fullmatch("[a-c]{5}[.]", done.text)
    assert done.stats.reasoning_cut_at == BUDGET
    closing = [PromptFormat(model.tokenizer).encode(text)[0] for text in ("\n", "</think>")]
    assert [entry.token for entry in done.logprobs[BUDGET : BUDGET + 2]] == closing
    assert all(entry.logprob < 0 for entry in done.logprobs)


def test_asking_for_the_answer_ends_the_reasoning_at_once(model: Model) -> None:
    chat, asked = new(model), list[int]()
    chat.answer_now()  # nothing runs
    for event in chat.send("is it?"):
        if isinstance(event, TextDelta) and (event.num_tokens >= 5 or not event.thinking):
            asked.append(event.num_tokens)
            chat.answer_now()  # again without effect, in the answer
    num_tokens = chat.stats.reasoning_cut_at
    assert num_tokens is not None
    num_tokens = chat.stats.reasoning_cut_at
    assert num_tokens is not None
    assert asked[0] <= num_tokens <= asked[0] + 2  # one is computed ahead
    prompt, reply = prompt_and_reply(chat)
    assert reply == expected(model, prompt, num_tokens)
    assert say(chat, "and?").stats.reasoning_cut_at is None


def test_where_the_end_of_the_reasoning_is_unknown_a_notice_says_so(model: Model) -> None:
    events = list(model.stream("is it?", thinking_budget=3, max_tokens=4))
    assert [e.text for e in events if isinstance(e, Notice)] == [
        "The thinking budget has no effect here: it is unknown how this reply's reasoning ends."
    ]
    prompts, model._runtime.prompts = model._runtime.prompts, PromptFormat(tiny_tokenizer(CHATML))  # which has none
    assert not any(isinstance(e, Notice) for e in new(model, thinking_budget=3).send("hi"))
    model._runtime.prompts = prompts
