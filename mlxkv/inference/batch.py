"""Batch: many replies that decode together, one model call for a token of each, in mlx-lm's batch caches.

A request is a `Generation` whose runner is a `RowRunner`: it prefills its prompt, alone or with others
(`joint_prefill.py`), in mlx-lm's own caches (`RowCache`), joins the batch, and takes its tokens from there; whoever
needs a token first runs the step for all. Rows leave when they end. `batch_check.py` says which requests may. On the
MLX thread.

mlx-lm's BatchGenerator would sample from log-probabilities, which in 16 bits make equals of logits that are not, and
would pad prompts of different lengths; here a reply has the tokens that its prompt alone has.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from mlxkv.cache.mlx_lm import all_native, native_layers
from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.batch_check import merge
from mlxkv.inference.draws import Draws
from mlxkv.inference.joint_prefill import JointPrefill, Member
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.memory import Budget

_CLEAR_EVERY = 256  # steps between returns of MLX's free buffers
_STEP = 256  # mlx-lm's caches grow by this many rows


class RowCache(PromptCache):
    """The rows of one prompt in mlx-lm's own caches, until `take_layers` moves them into a batch.

    Args:
        planned: the plan that it would have outside a batch.
        ids, layers: the tokens that it holds already, and their rows; see `rows_of`.
    """

    def __init__(self, planned: CachePlan, model: Any, ids: Sequence[int] = (), layers: Sequence[Any] = ()) -> None:
        self._planned = planned
        super().__init__(all_native(planned), model)
        if ids:
            self.put_rows(ids, layers)

    @property
    def capacity(self) -> int:
        geometry = self._planned.geometry
        return geometry.capacity if geometry else 0

    @property
    def nbytes(self) -> int:
        return self._planned.bytes_per_token * self.offset

    @property
    def live_nbytes(self) -> int:
        return self.nbytes

    def begin_turn(self, *, is_prefix: bool = False) -> None:
        """Nothing: it is never rewound."""

    def checkpoint(self, *, is_prefix: bool = False) -> None:
        """Nothing: it is never rewound."""

    def put_rows(self, ids: Sequence[int], layers: Sequence[Any]) -> None:
        """Take over layers in which `ids` follow what it holds."""
        self.layers[:] = layers
        self.log.extend(ids)
        self._adopt(None)

    def take_layers(self) -> list[Any]:
        """Give up the layers, to a batch."""
        layers, self.layers = self.layers, []
        self.plan = replace(self.plan, layers=())
        self._adopt(None)
        return layers


def rows_of(source: PromptCache, model: Any, ids: Sequence[int]) -> RowCache:
    """A RowCache with the longest prefix of `ids` that `source` holds, which is not changed."""
    twin = source.fork()
    if not twin.log or not twin.reuse(ids).cached:
        return RowCache(source.plan, model)
    return RowCache(source.plan, model, twin.log, native_layers(twin))


def can_begin(layers: Sequence[Any]) -> bool:
    """Whether the first rows of these caches of mlx-lm's are those of a shorter prompt; see `beginning`."""
    return all(
        type(leaf).__name__ == "KVCache" or (type(leaf).__name__ == "RotatingKVCache" and leaf.offset < leaf.max_size)
        for leaf in leaves(layers)
    )


def beginning(layers: Sequence[Any], num_tokens: int) -> list[Any]:
    """Caches with the first rows of these, which share them."""
    cut = copy.deepcopy(list(layers))
    for leaf in leaves(cut):
        leaf.keys, leaf.values = leaf.keys[..., :num_tokens, :], leaf.values[..., :num_tokens, :]
        leaf.offset = num_tokens
        if hasattr(leaf, "_idx"):
            leaf._idx = num_tokens
    return cut


def row_bytes(budget: Budget, plan: CachePlan, num_tokens: int) -> int:
    """Bytes of one row of a batch with this many tokens."""
    rows = -(-num_tokens // _STEP) * _STEP
    kept = sum(leaf.row_bytes * min(rows, leaf.native_window or rows) for leaf in plan.leaves if leaf.geometry)
    return kept + budget.state_bytes(plan)


@dataclass
class Row:
    """One reply in a batch. `tokens` are sampled and not yet taken."""

    cache: RowCache
    last: int
    most: int  # tokens
    draws: Draws
    tokens: deque[int] = field(default_factory=deque)
    num_sampled: int = 0
    sampled: list[int] = field(default_factory=list)  # if `when_ended`
    when_ended: Callable[[list[int], list[Any]], object] | None = None  # called with `sampled` and its caches
    is_fed: bool = False  # its last prompt token was
    is_ended: bool = False
    error: Exception | None = None  # of a caller's function, or a schema


class Batch:
    """The replies that decode together.

    Args:
        model: an mlx-lm model.
        ends: the ids that end a reply.
    """

    def __init__(self, model: Any, ends: Sequence[int]) -> None:
        self._model, self._ends = model, frozenset(ends)
        self._rows: list[Row] = []  # in the order of the batch caches
        self._joining: list[Row] = []
        self._layers: list[Any] = []
        self._inputs = mx.zeros((0,), mx.uint32)  # (rows,) the tokens to feed next
        self._num_steps = 0
        self.largest = 0
        """The most rows of a step so far."""

    @property
    def is_decoding(self) -> bool:
        """Whether there are rows that have begun."""
        return bool(self._rows)

    def add(
        self, cache: RowCache, last: int, params: SamplingParams, seen: Sequence[int], draws: Draws | None = None
    ) -> Row:
        """Let a prompt decode from the next step on. `cache` holds all of it but its `last` token. `draws`: None: by
        `params` alone."""
        most = params.max_tokens if cache.num_left is None else min(params.max_tokens, cache.num_left)
        row = Row(cache, last, most, draws or Draws(params, seen))
        self._joining.append(row)
        return row

    def take(self, row: Row) -> int | None:
        """The next token of a row; None where it has ended.

        Raises:
            Exception: what drew its tokens raised it.
        """
        while not row.tokens:
            if row.error is not None:
                raise row.error
            if row.is_ended:
                return None
            self._step()
        return row.tokens.popleft()

    def drop(self, row: Row) -> None:
        """End a row; it may have ended already."""
        row.is_ended = True
        self._joining = [r for r in self._joining if r is not row]
        self._keep([r is not row for r in self._rows])

    def _step(self) -> None:
        """One model call for all rows; each gets the token that the call before it sampled."""
        try:
            self._join()
            self._end([row.num_sampled + 1 == row.most and row.is_fed for row in self._rows])
            if not self._rows:
                return
            inputs, rows = self._inputs, self._rows
            logits = self._model(inputs[:, None], cache=self._layers)[:, -1, :]  # (rows, vocabulary)
            self._inputs = self._chosen(logits, inputs)
            mx.async_eval(self._inputs)
            self.largest = max(self.largest, len(rows))
            self._num_steps += 1
            if self._num_steps % _CLEAR_EVERY == 0:
                mx.clear_cache()
            is_output, tokens = [row.is_fed for row in rows], inputs.tolist()
            for row in rows:
                row.is_fed = True
            self._give(is_output, tokens)  # type: ignore[arg-type]
        except BaseException:
            for row in (*self._rows, *self._joining):
                row.is_ended = True
            self._rows, self._joining, self._layers = [], [], []
            raise

    def _join(self) -> None:
        """Copy the rows that wait into the batch caches."""
        if not (new := self._joining):
            return
        layers = merge([row.cache.take_layers() for row in new])
        first = mx.array([row.last for row in new], mx.uint32)
        if self._rows:
            for layer, more in zip(self._layers, layers, strict=True):
                layer.extend(more)
            first = mx.concatenate([self._inputs, first])
        else:
            self._layers = layers
        self._inputs, self._rows, self._joining = first, [*self._rows, *new], []
        mx.eval([layer.state for layer in self._layers])  # and the rows that were copied are free

    def _end(self, is_last: list[bool]) -> None:
        """Give the rows their last token, which no call needs any more."""
        if any(is_last):
            self._give(is_last, self._inputs.tolist())  # type: ignore[arg-type]

    def _give(self, is_given: list[bool], tokens: list[int]) -> None:
        """Hand out tokens, and drop the rows that end with them."""
        for row, given, token in zip(self._rows, is_given, tokens, strict=True):
            if given:
                row.tokens.append(token)
                row.num_sampled += 1
                if row.when_ended is not None:
                    row.sampled.append(token)
                row.is_ended = token in self._ends or row.num_sampled == row.most
            row.is_ended = row.is_ended or row.error is not None
        self._keep([not row.is_ended for row in self._rows])

    def _keep(self, is_kept: list[bool]) -> None:
        if all(is_kept):
            return
        for i, row in enumerate(self._rows):
            if not is_kept[i] and row.when_ended is not None:
                row.when_ended(row.sampled, [layer.extract(i) for layer in self._layers])
        kept = [i for i, keep in enumerate(is_kept) if keep]
        self._rows = [self._rows[i] for i in kept]
        if kept:
            for layer in self._layers:
                layer.filter(kept)
            self._inputs = self._inputs[mx.array(kept)]
        else:
            self._layers = []

    def _chosen(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """(rows,) the next token of each."""
        if all(row.draws.is_argmax and row.draws.cut is None for row in self._rows):
            return mx.argmax(logits, axis=-1)
        return mx.concatenate([_next_of(row, logits[i : i + 1], inputs[i : i + 1]) for i, row in enumerate(self._rows)])


def _next_of(row: Row, logits: mx.array, y: mx.array) -> mx.array:
    """The id (1,) that follows `y`; an error ends this row alone."""
    try:
        return row.draws.next(logits, y).astype(mx.uint32)
    except Exception as error:  # a caller's function may raise anything
        row.error = error
        return y


class RowRunner:
    """The TokenSource of a request in a batch: takes the place of ModelRunner.

    Attributes:
        row: its row, once its prompt is prefilled.
        drafting: None: a step computes one token of each row.
    """

    drafting: None = None

    def __init__(self, runner: ModelRunner, batch: Batch, ids: Sequence[int], params: SamplingParams) -> None:
        self._runner, self._batch, self._ids, self._params = runner, batch, ids, params
        self.row: Row | None = None
        self._joint: tuple[JointPrefill, Member] | None = None
        self.when_prefilled: Callable[[RowCache], None] = lambda cache: None
        self.when_ended: Callable[[list[int], list[Any]], object] | None = None  # see Row
        self.make_draws: Callable[[], Draws | None] = lambda: None

    def check(self, cache: PromptCache) -> None:
        self._runner.check(cache)

    def reset_peak_memory(self) -> None:
        self._runner.reset_peak_memory()

    @property
    def peak_memory(self) -> int:
        return self._runner.peak_memory

    def join(self, joint: JointPrefill, cache: RowCache) -> None:
        """Prefill the prompt together with others; `cache` holds what `joint` starts after."""
        self._joint = joint, joint.add(cache, self._ids[cache.offset : -1])

    def prefill(
        self, cache: PromptCache, ids: Sequence[int], cancelled: Callable[[], bool] = bool, *args: Any
    ) -> Iterator[int]:
        """As ModelRunner's; with the last chunk the row joins the batch."""
        if self._joint is None:
            calls = self._runner.prefill(cache, ids, cancelled, *args)
        else:
            calls = self._prefill_jointly(cache, *self._joint, cancelled)
        for done in calls:
            if done == len(ids):
                self._add(cache)
            yield done

    def _prefill_jointly(
        self, cache: PromptCache, joint: JointPrefill, member: Member, cancelled: Callable[[], bool]
    ) -> Iterator[int]:
        self._runner.check_prefill(cache, len(member.ids))
        done = 0
        while done < len(member.ids) and not cancelled():
            if done == member.done:  # else the chunk came with another prompt's
                joint.step()
            done = member.done
            yield done

    def decode(
        self, cache: PromptCache, last: int, params: SamplingParams, seen: Sequence[int] = (), **more: Any
    ) -> Generator[int]:
        """As ModelRunner's, of a new reply."""
        row = self.row or self._add(cache)
        cache.advance([last])
        try:
            while (token := self._batch.take(row)) is not None:
                if row.tokens or not row.is_ended:  # the last one is not fed
                    cache.advance([token])
                yield token
        finally:
            self.close()

    def _add(self, cache: PromptCache) -> Row:
        assert isinstance(cache, RowCache)  # the scheduler makes these alone for it
        self.when_prefilled(cache)
        self.row = self._batch.add(cache, self._ids[-1], self._params, self._ids[:-1], self.make_draws())
        self.row.when_ended = self.when_ended
        return self.row

    def close(self) -> None:
        """Leave the batch, and the prefill."""
        if self._joint is not None:
            joint, member = self._joint
            joint.drop(member)
        if self.row is not None:
            self._batch.drop(self.row)
