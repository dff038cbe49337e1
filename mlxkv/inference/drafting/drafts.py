"""Drafting: what drafts for a model; and Drafts, the drafts of one reply, by lookup, else by a draft model.

Decides nothing about costs (`gate.py`) and verifies nothing (`decoding.py`). On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlxkv.inference.drafting.gate import DraftGate
from mlxkv.inference.drafting.lookup import MAX_DRAFT, PromptLookup
from mlxkv.inference.draws import Draws

_MEASURED = 64  # prefilled tokens; fewer say little


class DraftModel(Protocol):
    """Drafts with another model; `model_drafts.py` implements it."""

    def prepare(self, ids: Sequence[int], cancelled: Callable[[], bool] = bool) -> None:
        """Prefill a prompt, before its reply is decoded."""
        ...

    def propose(self, ids: Sequence[int], most: int, draws: Draws) -> list[int]:
        """Up to `most` tokens that may follow `ids`, by `draws`."""
        ...


@dataclass
class Drafting:
    """What drafts for a model, for all its replies.

    Attributes:
        gate: decides when; it keeps what it measured.
        model: drafts where a lookup finds nothing; None: nothing does.
    """

    gate: DraftGate = field(default_factory=DraftGate)
    model: DraftModel | None = None

    def prefilled(self, ids: Sequence[int], num_new: int, seconds: float, cancelled: Callable[[], bool]) -> None:
        """The prompt `ids` is prefilled, its last `num_new` tokens in `seconds`; now for the draft model, too."""
        if num_new >= _MEASURED:
            self.gate.prefilled(num_new, seconds)
        if self.model is not None:
            self.model.prepare(ids, cancelled)

    def of_reply(self, ids: Sequence[int], ends: Collection[int]) -> Drafts:
        """The drafts of a reply to the prompt `ids`; none contains one of `ends`."""
        self.gate.begin_reply()
        return Drafts(self.gate, PromptLookup(ids, ends), self.model, ends)


class Drafts:
    """The drafts of one reply. Before each token ask `expects`, and tell `arrived` after it.

    Attributes:
        match: of the draft proposed last, see DraftGate.
    """

    def __init__(self, gate: DraftGate, lookup: PromptLookup, model: DraftModel | None, ends: Collection[int]) -> None:
        self.gate, self._lookup, self._model, self._ends = gate, lookup, model, frozenset(ends)
        self.match = 0
        self._expected: tuple[int, int] | None = None  # length of the match, and the token that it predicts

    def expects(self, most: int) -> bool:
        """Whether to wait for the next token, since a draft of up to `most` may follow it."""
        match = self._lookup.match()
        predicted = self._lookup.propose(1) if match else []
        self._expected = (match, predicted[0]) if predicted else None
        most = min(most, MAX_DRAFT)
        if predicted and self.gate.is_worth_waiting(match, most):
            return True
        return self._model is not None and self.gate.is_worth_waiting(0, most)

    def arrived(self, token: int) -> None:
        """The next token."""
        if self._expected is not None:
            self.gate.told(self._expected[0], is_right=token == self._expected[1])
            self._expected = None
        self._lookup.add(token)

    def propose(self, most: int, draws: Draws) -> list[int]:
        """The draft that the gate lets pass, of up to `most` tokens, which a draft model draws by `draws`; empty if
        none."""
        most = min(most, MAX_DRAFT)
        if most < 1:
            return []
        self.match = self._lookup.match()
        if self.match:
            draft = self._lookup.propose(most)
            if draft and (length := self.gate.length(self.match, len(draft))):
                return draft[:length]
        if self._model is None or not (length := self.gate.length(0, most)):
            return []
        self.match = 0
        draft = self._model.propose(self._lookup.ids, length, draws)
        ended = next((i for i, token in enumerate(draft) if token in self._ends), len(draft))
        return draft[:ended]

    def verified(self, draft: Sequence[int], accepted: int, seconds: float) -> None:
        """How many tokens of the draft were right, and what it took."""
        for i in range(min(accepted + 1, len(draft))):
            self.gate.told(self.match + i if self.match else 0, is_right=i < accepted)
        for token in draft[:accepted]:
            self._lookup.add(token)
        self.gate.drafted(self.match, len(draft), accepted, seconds)
