"""What /context says of reasoning that the chat template leaves out of the next prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.tui.state.reports.reports import context_note
from tests.chats import script
from tests.engine.test_engine_chats import SETTINGS, Said
from tests.hybrids import hybrid_folder
from tests.tokenizers import STRIPPING, THINK, tiny_folder, tiny_tokenizer

_THOUGHTS = "<think>\nhm, so be it\n</think>\n\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ring", "qwen3_next"])
def test_context_says_what_the_template_removed_and_what_that_cost(kind: str, home: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(STRIPPING, marks=THINK)
    if kind == "ring":
        folder = tiny_folder(tmp_path / "m", tokenizer=tokenizer)
    else:
        folder = hybrid_folder(tmp_path / "m", kind, tokenizer)

    def num_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    said = Said(replace(SETTINGS, max_tokens=100))
    said.one(cmd.LoadModel(str(folder)), ev.ModelReady)
    model = said.context.ready_model
    script(model, f"{_THOUGHTS}yes and no")
    said.one(cmd.Send("is it?", 0.0), ev.TurnFinished)
    assert context_note(said.one(cmd.ShowContext(), ev.ContextUsage)) == []

    script(model, "all good")
    done = said.one(cmd.Send("sure?", 0.0), ev.TurnFinished)
    use = said.one(cmd.ShowContext(), ev.ContextUsage)
    assert use.removed == num_tokens(_THOUGHTS)
    reply = len("yes and no") + 1
    if kind == "ring":
        assert use.again == reply
    else:
        assert use.again >= reply  # and what lies between the checkpoint and the reply
    asked = "\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    assert done.stats.prefill_tokens == use.again + num_tokens(asked)
    (line,) = context_note(use)
    assert line.startswith(f"The chat template left {use.removed} tok of reasoning out of the reply before the last ")
    assert line.endswith(f"{use.again} tok after it were prefilled again.")

    script(model, "ok")
    said.one(cmd.Send("really?", 0.0), ev.TurnFinished)  # the reply before it had no reasoning
    assert context_note(said.one(cmd.ShowContext(), ev.ContextUsage)) == []
    said.context.close()  # not the dispatcher: this thread still uses MLX


@pytest.mark.slow
def test_a_prompt_that_begins_differently_is_not_taken_for_stripped_reasoning(home: Path, tmp_path: Path) -> None:
    switched = "{% if enable_thinking %}<|im_start|>system\nthink first<|im_end|>\n{% endif %}" + STRIPPING
    folder = tiny_folder(tmp_path / "m", tokenizer=tiny_tokenizer(switched, marks=THINK))
    said = Said(replace(SETTINGS, max_tokens=100))
    said.one(cmd.LoadModel(str(folder)), ev.ModelReady)
    script(said.context.ready_model, f"{_THOUGHTS}yes")
    said.one(cmd.Send("is it?", 0.0), ev.TurnFinished)
    said.context.current_chat.thinking = True
    script(said.context.ready_model, f"{_THOUGHTS}no")
    done = said.one(cmd.Send("sure?", 0.0), ev.TurnFinished)
    assert done.stats.cached_tokens < 4
    use = said.one(cmd.ShowContext(), ev.ContextUsage)
    assert context_note(use) == []
    assert [part.role for part in use.parts] == ["user", "assistant", "user", "assistant"]
    said.context.close()
