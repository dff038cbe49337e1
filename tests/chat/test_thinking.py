"""Thinking models: reasoning told apart, kept out of the next prompt, and only the stripped reply read again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import mlxkv
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompts.prompt import PromptFormat, PromptState, message
from mlxkv.cli.print_mode import PrintRequest, answer
from mlxkv.events import NoAnswer, Notice, TextDelta, TurnEvent, TurnFinished
from mlxkv.model import Model
from tests.chats import CONFIG, say, script
from tests.hybrids import hybrid_folder
from tests.reference import largest
from tests.tokenizers import CHATML, OPENING, STRIPPING, THINK, VOCAB, tiny_folder, tiny_tokenizer

REPLIES = [
    "<think>\nhm, so be it\n</think>\n\nyes and no",
    "<think>\nagain\n</think>\n\nall good",
    "<think>\n\n</think>\n\nok",
]


def loaded(folder: Path, kind: str, template: str) -> Model:
    tokenizer = tiny_tokenizer(template, marks=THINK)
    if kind == "ring":
        tiny_folder(folder)
        tokenizer._tokenizer.save_pretrained(folder)
    else:
        hybrid_folder(folder, kind, tokenizer)
    return mlxkv.load(str(folder))


@pytest.fixture(params=["ring", "qwen3_next", "falcon_h1"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("template", [STRIPPING, OPENING], ids=["written", "opened in the prompt"])
def test_a_stripped_reply_is_all_that_is_read_again(kind: str, template: str, tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", kind, template)
    prompts = PromptFormat(model.tokenizer)
    opened = template == OPENING
    script(model, *(r.removeprefix("<think>\n") if opened else r for r in REPLIES))
    chat = model.chat(system="be", cache=CONFIG, temperature=0.0, max_tokens=100)
    events = list(chat.send("is it?"))
    first = events[-1]
    assert isinstance(first, TurnFinished)
    assert (first.text, first.thinking) == ("yes and no", "hm, so be it")
    deltas = [e for e in events if isinstance(e, TextDelta)]
    assert "".join(e.text for e in deltas if e.thinking) == first.thinking
    assert "".join(e.text for e in deltas if not e.thinking) == first.text
    assert [m.thinking for m in chat.messages] == ["", "hm, so be it"]
    before = chat.cache.tokens[: first.stats.prompt_tokens]

    second = say(chat, "sure?")
    assert (second.text, second.thinking) == ("all good", "again")
    prompt = prompts.render(chat._history.messages(chat.turns[:3]))
    assert "hm, so" not in prompt
    ids = prompts.encode(prompt)
    assert chat.cache.tokens[: len(ids)] == ids
    stays = (
        len(before) - 2 * opened - (kind != "ring" and not opened)
    )  # `<think>\n`; a hybrid keeps the last id's place
    stripped = len(ids) - stays
    s = second.stats
    assert (s.cached_tokens, s.prefill_tokens, s.prompt_tokens) == (stays, stripped, len(ids))
    assert s.reuse_stopped_at == stays
    assert "differs" in str(s.reuse_stopped_why)
    assert s.prefill_tokens < 45

    fresh = PromptCache(chat.cache.plan, model.loaded.model)
    probe = list(range(4, 30))
    for _ in model.runner.prefill(fresh, chat.cache.tokens):
        pass
    got, expected = (model.runner.score(c, probe) for c in (chat.cache.fork(), fresh))
    assert largest(got - expected) <= 1e-4 * largest(expected)
    third = say(chat, "really?")
    assert (third.text, third.thinking) == ("ok", "")
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("template", [STRIPPING, OPENING], ids=["written", "opened in the prompt"])
def test_a_thinking_chat_resumes_and_goes_on_as_if_it_had_never_ended(kind: str, template: str, tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", kind, template)
    replies = [r.removeprefix("<think>\n") if template == OPENING else r for r in REPLIES]
    outcomes, scores = [], []
    for interrupted in (False, True):
        script(model, *replies)
        chat = model.chat(system="be", cache=CONFIG, temperature=0.0, max_tokens=100)
        chat.save(title=f"thoughts {interrupted}")
        say(chat, "is it?")
        if interrupted:
            chat.close()
            chat = model.resume("thoughts True")
            assert chat.restored is not None
            assert chat.restored.tokens == chat.cache.offset == len(chat.log)
            assert [m.thinking for m in chat.messages] == ["", "hm, so be it"]
        script(model, *replies[1:])
        last = say(chat, "sure?")
        record = model.store.load(str(chat.session_id))
        assert [t.thinking for t in record.turns] == ["", "hm, so be it", "", "again"]
        outcomes.append((last.text, last.stats.cached_tokens, last.stats.prefill_tokens, tuple(chat.cache.tokens)))
        scores.append(model.runner.score(chat.cache.fork(), list(range(4, 30))))
        chat.close()
        model.store.delete(str(chat.session_id))  # or the second chat takes rows from the first
    assert outcomes[0] == outcomes[1]
    assert largest(scores[0] - scores[1]) == 0.0
    model.close()


@pytest.mark.slow
def test_a_chat_can_be_told_not_to_think(kind: str, tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", kind, OPENING)
    script(model, "just so", "<think>", "and so")
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=100, think=False)
    assert say(chat, "is it?").text == "just so"
    prompt = model.tokenizer.decode(chat.cache.tokens)
    assert "<think>\n\n</think>\n\njust so" in prompt
    chat.thinking = None
    script(model, "and\n</think>\n\nso")
    second = say(chat, "sure?")
    assert (second.text, second.thinking) == ("so", "and")
    model.close()


@pytest.mark.slow
def test_reasoning_that_was_stopped_can_be_continued(kind: str, tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", kind, STRIPPING)
    script(model, "<think>\none two three\n</think>\n\nfour")
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=100)
    for event in chat.send("count"):
        if isinstance(event, TextDelta) and event.num_tokens == 8:
            chat.cancel()
    assert chat.messages[-1].text == ""
    cut = chat.messages[-1].thinking
    assert "one two three".startswith(cut)
    assert cut
    script(model, "<think>\none two three\n</think>\n\nfour"[len("<think>\n") + len(cut) :])
    *events, last = chat.continue_reply()
    assert isinstance(last, TurnFinished)
    assert (last.text, last.thinking) == ("four", "one two three")
    assert "".join(e.text for e in events if isinstance(e, TextDelta) and e.thinking) == "one two three"[len(cut) :]
    # The last token's logits are wanted: a ring takes it back, a recurrent state goes to where the reply began.
    assert last.stats.prefill_tokens == (
        1 if kind == "ring" else len(chat.turns[1].ids) - last.stats.generated_tokens + 1
    )
    model.close()


@pytest.mark.slow
def test_print_mode_prints_the_answer_and_keeps_the_reasoning_for_those_who_ask(tmp_path: Path) -> None:
    outputs = {}
    for output, think in (("text", None), ("json", True), ("stream-json", None)):
        model = loaded(tmp_path / output, "ring", STRIPPING)
        script(model, REPLIES[0])
        out = io.StringIO()
        request = PrintRequest("is it?", save=False, output=output, think=think)
        answer(model, request, CONFIG, {"temperature": 0.0}, out, io.StringIO())
        outputs[output] = out.getvalue()
    assert outputs["text"] == "yes and no\n"
    result = json.loads(outputs["json"])
    assert (result["text"], result["thinking"]) == ("yes and no", "hm, so be it")
    events = [json.loads(line) for line in outputs["stream-json"].splitlines()]
    pieces = [e for e in events if e["type"] == "text"]
    assert "".join(e["text"] for e in pieces if e["thinking"]) == "hm, so be it"
    assert "".join(e["text"] for e in pieces if not e["thinking"]) == "yes and no"


def test_print_mode_can_ask_for_no_reasoning(tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", "ring", OPENING)
    script(model, "just so")
    out = io.StringIO()
    answer(model, PrintRequest("is it?", save=False, think=False), CONFIG, {"temperature": 0.0}, out, io.StringIO())
    assert out.getvalue() == "just so\n"  # it would be reasoning, had the prompt opened it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "num_tokens", "advice"),
    [
        ("<think>\nno end of it", 9, "raise --max-tokens, or ask for an answer without reasoning (--no-think)."),
        ("<think>\nhm\n</think>", 7, "ask for an answer without reasoning (--no-think)."),
        ("", 1, "ask in other words."),
    ],
)
def test_a_reply_without_text_says_so(reply: str, num_tokens: int, advice: str, tmp_path: Path) -> None:
    """Reasoning alone was an empty line, exit code 0 and, with -q, no word."""
    said = f"The reply was reasoning alone ({num_tokens} tokens); {advice}"
    said = said if reply else f"The reply is empty (1 token); {advice}"
    for output in ("text", "json", "stream-json"):
        model = loaded(tmp_path / output, "ring", STRIPPING)
        script(model, reply)
        out, err = io.StringIO(), io.StringIO()
        request = PrintRequest("is it?", save=False, output=output, quiet=True)
        assert answer(model, request, CONFIG, {"temperature": 0.0, "max_tokens": 9}, out, err) == 0
        if output == "text":
            assert (out.getvalue(), err.getvalue()) == ("\n", f"{said}\n")
        else:
            *events, result = [json.loads(line) for line in out.getvalue().splitlines()]
            assert (result["text"], result["notices"]) == ("", [said])
            assert [e["text"] for e in events if e["type"] == "notice"] == [said] * (output == "stream-json")
    model = loaded(tmp_path / "api", "ring", STRIPPING)
    script(model, reply)
    events = list(model.chat(cache=CONFIG, temperature=0.0, max_tokens=9).send("is it?"))
    assert isinstance(missing := events[-2], NoAnswer)
    assert (missing.num_tokens, missing.reason) == (num_tokens, "length" if num_tokens == 9 else "stop")
    assert ("think=False" in missing.text) is missing.thinking is bool(reply)
    script(model, "<think>\nhm\n</think>\n\nyes")
    assert not [e for e in model.chat(cache=CONFIG, temperature=0.0).send("is it?") if isinstance(e, NoAnswer)]
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("template", [STRIPPING, CHATML], ids=["off already", "no switch"])
def test_no_reply_advises_what_is_so_already_or_cannot_be(template: str, tmp_path: Path) -> None:
    """`--no-think` was advised to those who had just used it."""
    for output in ("text", "json"):
        model = loaded(tmp_path / output, "ring", template)
        script(model, "<think>\nno end of it")
        out, err = io.StringIO(), io.StringIO()
        request = PrintRequest("is it?", save=False, output=output, quiet=True, think=False)
        answer(model, request, CONFIG, {"temperature": 0.0, "max_tokens": 9}, out, err)
        said = ["The reply was reasoning alone (9 tokens); raise --max-tokens."]
        if template == CHATML:
            said.insert(0, "This model's chat template has no switch for reasoning: turning it off changes nothing.")
        if output == "text":
            assert err.getvalue().splitlines() == said
        else:
            assert json.loads(out.getvalue())["notices"] == said


def test_a_chat_says_once_that_its_model_has_no_switch(tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", "ring", CHATML)
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=2, think=True, autosave=True)
    said: list[list[str]] = []
    for think in (True, True, None, True, None):
        chat.thinking = think
        said.append([e.text for e in chat.send("hi") if isinstance(e, Notice) and "switch" in e.text])
    told = ["This model's chat template has no switch for reasoning: turning it on changes nothing."]
    assert said == [told, [], [], told, []]
    chat.thinking = True
    assert chat.think_notice == told[0]
    *_, last = chat.send("hi")
    assert isinstance(last, TurnFinished)
    assert not last.can_be_quiet
    chat.thinking = False
    list(chat.send("hi"))
    assert [m.can_be_quiet for m in chat.messages[-4:]] == [True, True, True, False]
    chat.close()
    model.close()


def test_a_reply_that_was_stopped_is_not_said_to_lack_text(tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", "ring", STRIPPING)
    script(model, "<think>\none two three")
    chat, events = model.chat(cache=CONFIG, temperature=0.0, max_tokens=100), list[TurnEvent]()
    for event in chat.send("count"):
        events.append(event)
        if isinstance(event, TextDelta):
            chat.cancel()
    assert not [event for event in events if isinstance(event, NoAnswer)]
    model.close()


@pytest.mark.parametrize(
    "ending",
    [
        "{% if enable_thinking %}<think>{% endif %}",
        "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}",
    ],
)
def test_unset_the_templates_own_default_holds(ending: str) -> None:
    """mlx-lm's wrapper turns reasoning on wherever it sees the marks."""
    tokenizer = tiny_tokenizer(CHATML + ending, marks=THINK)
    said = [message("user", "hi")]
    theirs = tokenizer._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert PromptFormat(tokenizer).render(said) == theirs
    for think in (True, False):
        theirs = tokenizer._tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True, enable_thinking=think
        )
        assert PromptFormat(tokenizer).render(said, think=think) == theirs


def test_a_marker_that_is_talked_about_is_text(tmp_path: Path) -> None:
    model = loaded(tmp_path / "m", "ring", STRIPPING)
    script(model, "a <think> tag", "b")
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=100)
    first = say(chat, "what is <think>")
    assert (first.text, first.thinking) == ("a <think> tag", "")
    model.close()


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_what_lasts_of_a_prompt_ends_where_history_words_the_reply_otherwise() -> None:
    for template, lost in ((CHATML, 0), (STRIPPING, 0), (OPENING, 2)):
        prompts = PromptFormat(tiny_tokenizer(template, marks=THINK))
        messages = [message("user", "hi")]
        prompt = prompts.prompt(messages, PromptState())
        assert prompts.num_unchanged(messages, prompt) == len(prompt.ids) - lost
    assert prompts.num_unchanged(messages, prompts.prompt(messages, PromptState(), False), False) == len(prompt.ids) - 2


def test_a_stripped_reply_leaves_earlier_ids_as_they_were_sampled() -> None:
    prompts = PromptFormat(tiny_tokenizer(STRIPPING, marks=THINK))
    hi, odd = message("user", "hi"), [7, 3, 9]  # 3 is a token the tokenizer never makes from its text
    first = prompts.prompt([hi], PromptState())
    fed = prompts.with_reply(first, prompts.raw("", odd), [*odd, 2])
    plain = message("assistant", prompts.raw("", odd))
    second = prompts.prompt([hi, plain, hi], fed)
    assert second.ids[: len(fed.ids)] == fed.ids
    thought = prompts.encode("<think>\na\n</think>\n\nb")
    fed = prompts.with_reply(second, prompts.raw("b", thought), [*thought, 2])
    third = prompts.prompt([hi, plain, hi, message("assistant", "b", "a"), hi], fed)
    assert third.ids[: len(second.ids)] == second.ids
    assert list(third.ids[len(second.ids) :]) == prompts.encode(third.text[len(second.text) :])


def test_the_tiny_vocabulary_has_room_for_the_marks() -> None:
    assert len(tiny_tokenizer(marks=THINK).get_vocab()) == VOCAB
