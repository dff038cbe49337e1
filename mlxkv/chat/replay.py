"""Replay: the prompt state of a chat, rebuilt from its turns after going back or resuming.

Pure except for the tokenizer; no MLX, no disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxkv.chat.prefix import ChatPrefix
from mlxkv.chat.prompt import Message, PromptFormat, PromptState, message
from mlxkv.events import FinishReason
from mlxkv.store import TurnRecord
from mlxkv.token_ids import TokenIds, common_prefix

_MAX_TRIED = 3  # replies, the newest first


@dataclass(frozen=True)
class Replay:
    """The turns of a chat and the token log of their replay.

    `model`: the chat's model, as in `TurnRecord.params["model"]`; None while nothing is saved.
    """

    prompts: PromptFormat
    prefix: ChatPrefix
    turns: tuple[TurnRecord, ...]
    log: TokenIds
    model: str | None = None

    def messages(self, turns: Sequence[TurnRecord]) -> list[Message]:
        """The system prompt and `turns`. Templates may insist that roles alternate: replies without text (stopped
        before it, or while thinking) are left out, and the user messages around one are joined.
        """
        out = [message("system", self.prefix.system)] if self.prefix.system else []
        for turn in turns:
            new = message(turn.role, turn.text, turn.thinking)
            if not self.prompts.has_template:
                out.append(new)
            elif out and out[-1]["role"] == turn.role:
                out[-1] = new | {"content": f"{out[-1]['content']}\n\n{turn.text}"}
            elif turn.role != "assistant" or turn.text:
                out.append(new)
        return out

    def prompt_state(self) -> PromptState:
        """The state after these turns; empty if they are of another model, whose ids mean nothing to this tokenizer."""
        prompts, turns = self.prompts, self.turns
        if not turns:
            return self.prefix.prompt_state
        newest = next((t for t in reversed(turns) if t.role == "assistant"), None)
        if self.model is not None and newest is not None and newest.params.get("model", self.model) != self.model:
            return PromptState()
        reply = turns[-1]
        if reply.role == "user":
            return self._prompt(turns, self.log)
        prompt, is_cut_off = self.prompt_before_reply(), reply.stats.get("finish_reason") == FinishReason.STOP_STRING
        if prompts.has_template:
            return prompt if is_cut_off else prompts.with_reply(prompt, prompts.raw(reply.text, reply.ids), reply.ids)
        return PromptState(
            "", prompt.ids + (prompts.displayed_ids(reply.text, reply.ids, prompt.ids) if is_cut_off else reply.ids)
        )

    def prompt_before_reply(self) -> PromptState:
        """The prompt that the last turn replies to."""
        *turns, reply = self.turns
        return self._prompt(turns, self.log[: len(self.log) - len(reply.ids)], reply.params.get("think"))

    def _prompt(self, turns: Sequence[TurnRecord], ids: TokenIds, think: bool | None = None) -> PromptState:
        """The state of the prompt `ids` of `turns`, with a cut after the last reply of which it has the sampled ids."""
        prompts = self.prompts
        if not prompts.has_template:
            return PromptState("", ids)
        text = prompts.render(self.messages(turns), think=think)
        places, least = spans(turns), len(ids)
        replies = []
        for i in reversed(range(1, len(turns))):
            if turns[i].role == "assistant" and turns[i].text and places[i][0] + len(turns[i].ids) <= least:
                replies.append(i)
            least = min(least, places[i][0])
        for i in replies[:_MAX_TRIED]:
            reply = turns[i]
            before = PromptState(prompts.render(self.messages(turns[:i]), think=reply.params.get("think")))
            before = prompts.with_reply(before, prompts.raw(reply.text, reply.ids), reply.ids)
            if text.startswith(before.text):
                return PromptState(text, ids, ((len(before.text), places[i][0] + len(reply.ids)),))
        return PromptState(text, ids)

    def retokenize(self, turns: Sequence[TurnRecord]) -> tuple[tuple[TurnRecord, ...], PromptState]:
        """`turns` with new ids and positions, as the only ones of a chat with the same prefix, and the state after
        them. Replies of this model keep their sampled ids."""
        prompts, state = self.prompts, self.prefix.prompt_state
        log: list[int] = []
        out: list[TurnRecord] = []
        for i, turn in enumerate(turns):
            start, ids = len(log), turn.ids
            if turn.role == "user":
                think = turns[i + 1].params.get("think") if i + 1 < len(turns) else None
                state = prompts.prompt(self.messages(turns[: i + 1]), state, think)
                start = common_prefix(log, state.ids)
                turn = replace(turn, ids=tuple(state.ids[start:]), start=start)
            else:
                if not ids or turn.params.get("model", self.model) != self.model:
                    ids = tuple(prompts.encode_text(turn.text, log))
                params = turn.params if self.model is None else {**turn.params, "model": self.model}
                turn = replace(turn, ids=ids, start=start, params=params)
                if turn.stats.get("finish_reason") != FinishReason.STOP_STRING:
                    state = prompts.with_reply(state, prompts.raw(turn.text, ids), ids)
                elif not prompts.has_template:
                    state = PromptState("", TokenIds([*log, *prompts.displayed_ids(turn.text, ids, log)]))
            log[start:] = turn.ids
            out.append(turn)
        return tuple(out), state

    def checkpoints(self, prompt: PromptState, think: bool | None) -> tuple[int, ...]:
        """Positions in `prompt` at which to keep the state of recurrent layers: the next prompt may differ there."""
        turns = self.turns if self.turns[-1].role == "user" else self.turns[:-1]
        return (self.prompts.num_unchanged(self.messages(turns), prompt, think),)


def spans(turns: Sequence[TurnRecord]) -> list[tuple[int, int]]:
    """The first and last position of each turn's ids in the log. If a template rewrote a turn later, the next one
    starts before its end."""
    starts: list[int] = []
    length = 0
    for turn in turns:  # as their replay makes the log
        starts.append(length if turn.start is None else turn.start)
        length = starts[-1] + len(turn.ids)
    return [(start, min([start + len(turns[i].ids), *starts[i + 1 :]])) for i, start in enumerate(starts)]
