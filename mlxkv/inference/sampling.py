"""SamplingParams: checked here, and made into mlx-lm's sampler and logits processors.

Pure values until `make_sampler` is called, on the MLX thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from mlxkv.arguments import keywords, number, shown, whole
from mlxkv.errors import ArgumentError, ConfigError
from mlxkv.text.encoding import well_formed

if TYPE_CHECKING:
    import mlx.core as mx

DEFAULT_MAX_TOKENS = 4096
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.95

_LEAST_TEMPERATURE, _LEAST_TOP_P = 1e-3, 1e-6  # below which float16 and float32 underflow for the likeliest token
_LEAST_PENALTY = 1e-3  # of repetition, below which float16 logits overflow
PENALISED = 20  # last tokens that a penalty looks at, by default
_MOST_PENALISED = 10_000_000
MAX_LOGPROBS = 1000  # likeliest tokens beside each token

_RANGES: dict[str, tuple[Callable[..., float], float, float]] = {
    "temperature": (number, 0.0, 100.0),
    "top_p": (number, 0.0, 1.0),
    "top_k": (whole, 0, 10_000_000),
    "min_p": (number, 0.0, 1.0),
    "max_tokens": (whole, 1, 10_000_000),
    "thinking_budget": (whole, 0, 10_000_000),
    "seed": (whole, 0, 2**64 - 1),
    "repetition_penalty": (number, 0.0, 100.0),
    "presence_penalty": (number, -100.0, 100.0),
    "frequency_penalty": (number, -100.0, 100.0),
    "repetition_context_size": (whole, 1, _MOST_PENALISED),
    "presence_context_size": (whole, 1, _MOST_PENALISED),
    "frequency_context_size": (whole, 1, _MOST_PENALISED),
    "xtc_probability": (number, 0.0, 1.0),
    "xtc_threshold": (number, 0.0, 0.5),
    "logprobs": (whole, 0, MAX_LOGPROBS),
}
_NULLABLE = ("thinking_budget", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs")
_BIAS = (-1000.0, 1000.0)


@keywords
@dataclass(frozen=True)
class SamplingParams:
    """Sampling of the next token, and when to stop. Numbers may also be numpy's, MLX's or `fractions`'.

    These are the keyword arguments of `Model.chat`, `Model.generate` and `Chat.send`. Those that you leave out are the
    chat's, else those that the model's own `generation_config.json` recommends; the defaults shown here are for a model
    that recommends none.

    Args:
        temperature: how much chance decides; 0 always takes the most likely token.
        top_p: sample from the most likely tokens that together have this probability; 1 or 0 is off.
        top_k: sample from this many of the most likely tokens; 0 is off.
        min_p: sample only tokens with at least this probability relative to the most likely one; 0 is off.
        max_tokens: the most tokens of one reply; 256 by default in `generate` and `stream`.
        thinking_budget: the most tokens of reasoning in a reply to messages; then mlxkv writes the marker that ends it,
            and the answer follows. All count towards `max_tokens`. None: no limit. Raw text has no reasoning.
        seed: makes sampling repeatable; None continues the thread's random state.
        stop: strings that end the reply and are not part of it; a single string is allowed.
        repetition_penalty: divides the logits of the last tokens if they are positive, else multiplies them, so that
            numbers above 1 avoid repetition; None is off.
        presence_penalty: is subtracted from the logit of each of the last tokens, once; None is off.
        frequency_penalty: is subtracted from it as often as the token is among them; None is off.
        repetition_context_size, presence_context_size, frequency_context_size: how many are the last tokens, those of
            the prompt included.
        logit_bias: is added to the logits of these tokens: numbers from -1000 to 1000 by token id, which may be text,
            as in JSON; None is off.
        xtc_probability: how often "exclude top choices" is applied to a token: of the tokens that have at least
            `xtc_threshold` only the least likely one stays, and line ends and end tokens; 0 is off.
        xtc_threshold: see `xtc_probability`.
        logprobs: report the log-probability of each token of the reply, and of this many of the likeliest tokens in its
            place: natural logarithms of the model's own distribution, before penalties, `logit_bias`, hooks,
            temperature and all other sampling. 0 reports the reply's tokens alone, None nothing.

    Raises:
        ConfigError: a value out of its range; the message names field, value and range.
    """

    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    thinking_budget: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_context_size: int = PENALISED
    presence_context_size: int = PENALISED
    frequency_context_size: int = PENALISED
    logit_bias: Mapping[int, float] | None = None
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (rule, low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None or name not in _NULLABLE:
                object.__setattr__(self, name, rule(name, value, low, high))
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))

    def check_ids(self, vocabulary: int) -> None:
        """Raises ConfigError: `logit_bias` names a token that a model with so many does not have."""
        if self.logit_bias and (most := max(self.logit_bias)) >= vocabulary:
            raise ConfigError(f"`logit_bias` has the token {most:,}; this model's tokens are below {vocabulary:,}.")

    def for_sample(self, n: int) -> SamplingParams:
        """These parameters for sample `n` of several from one prompt: its seed is made from this one, which 0 has."""
        if self.seed is None or n == 0:
            return self
        digest = hashlib.blake2b(f"{self.seed} {n}".encode(), digest_size=8).digest()
        return replace(self, seed=int.from_bytes(digest))

    @classmethod
    def for_model(cls, generation: Mapping[str, Any], **chosen: Any) -> SamplingParams:
        """The caller's values, else those of the model's generation_config.json, else the defaults.

        Raises:
            ConfigError: as for SamplingParams.
        """
        params = cls()
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
            value = generation.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    params = replace(params, **{name: value})
                except ConfigError:
                    continue  # a bad value in the model's own file: use the default
        if generation.get("do_sample") is False:
            params = replace(params, temperature=0.0)
        return replace(params, **{name: value for name, value in chosen.items() if value is not None})

    @classmethod
    def saved(cls, table: Mapping[str, Any]) -> SamplingParams:
        """Parameters saved with a chat; unknown names and invalid values are skipped."""
        params = cls()
        for name, value in table.items():
            if name in cls.__dataclass_fields__ and value is not None:
                with suppress(ConfigError):
                    params = replace(params, **{name: value})
        return params

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, so that no random key is used."""
        return self.temperature < _LEAST_TEMPERATURE

    @property
    def num_keys(self) -> int:
        """Random keys that a token takes, as in mlx-lm."""
        return 0 if self.is_greedy else 2 if self.xtc_probability else 1

    @property
    def num_penalised(self) -> int:
        """The last tokens that penalties look at."""
        sizes = (
            (self.repetition_penalty, self.repetition_context_size),
            (self.presence_penalty, self.presence_context_size),
            (self.frequency_penalty, self.frequency_context_size),
        )
        return max((size for penalty, size in sizes if penalty), default=0)

    def make_sampler(self, spared: Sequence[int] = ()) -> Callable[..., mx.array]:
        """A function from log-probabilities (S, vocab), and optionally `num_keys` random keys for each row, to token
        ids (S,).

        Without keys the thread's random state is used. By mlx-lm's rules, within its limits: a top_k of the whole
        vocabulary is off, and a temperature or top_p that would underflow takes the likeliest token.

        Args:
            spared: ids that XTC never excludes.
        """
        import mlx.core as mx
        from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

        top_p = max(self.top_p, _LEAST_TOP_P) if self.top_p else 1.0

        def sample(logprobs: mx.array, keys: Sequence[Sequence[mx.array]] | None = None) -> mx.array:
            if self.is_greedy:
                return mx.argmax(logprobs, axis=-1)
            if top_p < 1:
                logprobs = apply_top_p(logprobs, top_p)
            if self.min_p:
                logprobs = apply_min_p(logprobs, self.min_p)
            if self.xtc_probability:
                firsts = None if keys is None else [key[0] for key in keys]
                logprobs = self._without_top_choices(logprobs, firsts, spared)
            if 0 < self.top_k < logprobs.shape[-1]:
                logprobs = apply_top_k(logprobs, self.top_k)
            logits = logprobs * (1 / self.temperature)
            if keys is None:
                return mx.random.categorical(logits)
            return mx.concatenate([mx.random.categorical(logits[i : i + 1], key=key[-1]) for i, key in enumerate(keys)])

        return sample

    def _without_top_choices(
        self, logprobs: mx.array, keys: Sequence[mx.array] | None, spared: Sequence[int]
    ) -> mx.array:
        """XTC as mlx-lm applies it, which takes no key."""
        import mlx.core as mx

        probs = mx.softmax(logprobs, axis=-1)
        least = mx.where(probs > self.xtc_threshold, probs, mx.inf).min(axis=-1, keepdims=True)
        is_top = probs > least
        if spared:
            is_top[..., mx.array(list(spared))] = False
        chances = mx.random.uniform() if keys is None else mx.stack([mx.random.uniform(key=key) for key in keys])
        is_applied = chances.reshape(-1, 1) <= self.xtc_probability  # (S, 1), or (1, 1) for all rows
        return mx.where(is_applied & is_top, -mx.inf, logprobs)

    def make_logits_processors(self) -> list[Callable[[mx.array, mx.array], mx.array]]:
        """Functions of (token ids so far, logits (1, vocab)) that return changed logits."""
        from mlx_lm.sample_utils import make_logits_processors

        return make_logits_processors(
            logit_bias=self.logit_bias and dict(self.logit_bias),  # type: ignore[arg-type]
            repetition_penalty=self.repetition_penalty and max(self.repetition_penalty, _LEAST_PENALTY),
            repetition_context_size=self.repetition_context_size,
            presence_penalty=self.presence_penalty,
            presence_context_size=self.presence_context_size,
            frequency_penalty=self.frequency_penalty,
            frequency_context_size=self.frequency_context_size,
        )


def random_state() -> bytes:
    """This thread's random state, to continue from later."""
    import mlx.core as mx

    state: Any = mx.random.state
    return _bytes_of(state[0])


def reply_key(seed: int | None) -> mx.array:
    """The random key (2,) that a reply's tokens are drawn from: of `seed`, else split from the thread's state."""
    import mlx.core as mx

    if seed is not None:
        return mx.random.key(seed)
    state: Any = mx.random.state
    following, key = mx.random.split(mx.array(state[0]))
    set_random_state(_bytes_of(following))
    return key


def set_random_state(state: bytes) -> None:
    """Continue from a state of `random_state`. One of another size is ignored: sampling merely differs."""
    import mlx.core as mx

    if len(state) == 8:
        mx.random.seed(int.from_bytes(state, "big"))  # a seed's two halves are the key


def _bytes_of(key: mx.array) -> bytes:
    halves: Any = key.tolist()
    return b"".join(int(half).to_bytes(4, "big") for half in halves)  # a key: two uint32


SAMPLING = tuple(f.name for f in fields(SamplingParams))


def _strings(stop: Any) -> tuple[str, ...]:
    """`stop` as a tuple; a string is one stop string, not one for each of its characters."""
    is_several = isinstance(stop, Iterable) and not isinstance(stop, str | Mapping)
    found: tuple[Any, ...] = tuple(stop) if is_several else (stop,)  # type: ignore[arg-type]
    if not all(isinstance(s, str) and s for s in found):
        kind = ConfigError if all(isinstance(s, str) for s in found) else ArgumentError
        raise kind(f"`stop` is {shown(stop)}; it must be a string or a list of strings, none of them empty.")
    return tuple(map(well_formed, found))


def _bias(given: Any) -> dict[int, float] | None:
    """`logit_bias` as numbers by id; an empty one is None."""
    if not given and (given is None or isinstance(given, Mapping)):
        return None
    rule = "numbers by token id, such as {1234: -5}"
    if not isinstance(given, Mapping):
        raise ArgumentError(f"`logit_bias` is {shown(given)}; it must be {rule}.")
    found = {}
    for token, value in given.items():
        is_digits = isinstance(token, str) and token.isascii() and token.isdigit()
        number_of = int(token) if is_digits else token
        if isinstance(token, str) and not is_digits:
            raise ArgumentError(f"`logit_bias` has the key {shown(token)}; it must have {rule}.")
        token = whole("logit_bias", number_of, 0, 2**31 - 1)
        found[token] = number(f"logit_bias[{token}]", value, *_BIAS)
    return found
