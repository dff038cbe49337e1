"""ReasoningCut: ends the reasoning of one reply, after a budget of tokens or when asked to, so that the answer begins.

The ids that close the reasoning are drawn in place of the model's, so that they are fed, recorded and counted as all
others. Follows the reply's ids by itself: they are drawn before they are shown. On the MLX thread, except that `asked`
may be set from any.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlxkv.inference.reply_parser import ReasoningSplitter
from mlxkv.tokenizer.tokens import Detokenizer

_CONTEXT = 16  # ids before those that close the reasoning
_MARGIN = 32  # tokens before the end of the budget in which nothing is drafted: more than a draft has


class ReasoningCut:
    """What the next token must be, so that the reasoning ends.

    Args:
        splitter: of the reply, before its first token.
        closing: makes the ids that close the reasoning after these ids.
        budget: the most tokens of reasoning, its markers not counted; None: as many as the model writes.
        asked: set it to end the reasoning at once; without effect while none is written.
        reply: the ids that a reply to continue has already.

    Attributes:
        num_tokens: the tokens of reasoning at the cut; None: it was not cut.
        position: of the first closing id in the reply.
    """

    def __init__(
        self,
        tokenizer: Any,
        splitter: ReasoningSplitter,
        closing: Callable[[Sequence[int]], list[int]],
        *,
        budget: int | None = None,
        asked: threading.Event | None = None,
        reply: Sequence[int] = (),
    ) -> None:
        self._splitter, self._closing, self._ends = splitter, closing, frozenset(tokenizer.eos_token_ids)
        self._budget, self._asked = budget, asked or threading.Event()
        self._detokenizer = Detokenizer(tokenizer)
        self._ids: list[int] = list(reply)
        self._num_followed = 0  # of `_ids`
        self._num_reasoning = 0
        self._last: mx.array | None = None  # the id that was drawn last, which may not have arrived
        self._is_begun = False
        self._forced: deque[int] = deque()
        self.num_tokens: int | None = None
        self.position = 0

    @property
    def can_draft(self) -> bool:
        """Whether the next tokens are the model's, however many are drafted."""
        if self._forced or self._asked.is_set():
            return False
        return not self._may_be_spent(_MARGIN)

    def next(self, y: mx.array) -> int | None:
        """The id that must follow `y` (1,); None: the model's own. Waits for `y` only where the reasoning may end."""
        self._take_last()
        self._last, self._is_begun = (y if self._is_begun else None), True  # the first is the end of the prompt
        if not self._forced and (self._asked.is_set() or self._may_be_spent(1)):
            self._cut()
        return self._forced.popleft() if self._forced else None

    def keep(self, ids: Sequence[int]) -> None:
        """These ids were fed together with a draft; `next` is given the one after them."""
        self._take_last()
        self._ids += ids

    def _may_be_spent(self, more: int) -> bool:
        """Whether the budget may be, once there are so many more tokens. Reasoning that begins again after an answer
        has begun is noticed when its marker has arrived."""
        if self._budget is None or len(self._ids) + more < self._budget:
            return False
        self._follow()
        if self._splitter.state == "text":
            return False
        return self._num_reasoning + more >= self._budget + (self._splitter.state != "thinking")

    def _cut(self) -> None:
        """End the reasoning, if there is any and it must end."""
        self._take_last()
        self._follow()
        is_asked = self._asked.is_set()
        self._asked.clear()
        is_spent = self._budget is not None and self._num_reasoning >= self._budget
        is_over = self._splitter.state != "thinking" or (bool(self._ids) and self._ids[-1] in self._ends)
        if is_over or not (is_asked or is_spent):
            return
        if self.num_tokens is None:
            self.num_tokens, self.position = self._num_reasoning, len(self._ids)
        self._forced.extend(self._closing(self._ids[-_CONTEXT:]))

    def _take_last(self) -> None:
        """Record the last id, which has arrived by now, or is waited for."""
        if self._last is not None:
            self._ids.append(int(self._last.item()))  # type: ignore[arg-type]
            self._last = None

    def _follow(self) -> None:
        """Let the splitter read what has arrived."""
        for token in self._ids[self._num_followed :]:
            was_thinking = self._splitter.state == "thinking"
            for _ in self._splitter.feed(self._detokenizer.add(token)):
                pass
            self._num_reasoning += was_thinking and self._splitter.state == "thinking"
        self._num_followed = len(self._ids)
