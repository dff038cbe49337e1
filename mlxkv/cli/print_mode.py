"""Print mode: one reply on stdout, everything else on stderr. For pipes and scripts.

Runs a turn on this thread, which then owns MLX. `app` parses the options; the output is text, one JSON object, or a
line of JSON per event.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

from mlxkv.chat.resuming.own_bounds import fitting
from mlxkv.errors import OutputClosedError
from mlxkv.events import (
    MEANWHILE,
    NoAnswer,
    Notice,
    NotSaved,
    PrefillProgress,
    PromptEvicted,
    TextDelta,
    TokenLogprobs,
    TurnEvent,
    TurnFinished,
)
from mlxkv.settings.setting_sources import ChatSettings
from mlxkv.stats import evicted_text, no_answer_text, stat_line
from mlxkv.system.streams import INTERRUPTED
from mlxkv.system.terminal import close_before_ending, handle_interrupts
from mlxkv.text.clean import CONTEXT, clean
from mlxkv.tokenizer.tokens import decode

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.chat.chat import Chat
    from mlxkv.model import Model


@dataclass(frozen=True)
class PrintRequest:
    """The prompt and its chat. `resume` is a session id; None starts a new chat."""

    question: str
    system: str | None = None
    resume: str | None = None
    fork: bool = False
    save: bool = True
    quiet: bool = False
    output: str = "text"  # or "json", "stream-json"
    cache: Path | None = None  # a prompt cache to begin with; such a chat is not saved
    think: bool | None = None  # reason first, if the model can; None: as the chat does
    schema: dict[str, Any] | None = None  # JSON schema that the reply follows
    own: ChatSettings | None = None  # to store with the chat, which takes a preset
    has_own_bounds: bool = False  # the cache's bounds are settings of the resumed chat


def answer(
    model: Model, request: PrintRequest, cache: CacheConfig | None, sampling: dict[str, Any], out: TextIO, err: TextIO
) -> int:
    """Generate and print one reply; returns the exit code (130 if interrupted; the partial reply is printed and saved).

    `cache` None keeps the resumed session's.
    """
    with _chat(model, request, cache) as chat, _interrupts(chat):
        if (restored := _restored(chat)) and not request.quiet:
            print(restored, file=err)
        try:
            finished, notices = _print_turn(chat, request, out, err, model.tokenizer, sampling)
        except OutputClosedError:  # as in `mlxkv -p ... | head -1`: the generated part is saved
            return 0
        if request.output != "text":
            result = result_json(chat, model, finished)
            if finished.logprobs:
                result["logprobs"] = logprobs_json(finished.logprobs, model.tokenizer)
            result |= {"notices": notices} if notices else {}
            print(json.dumps({"type": "result", **result} if request.output == "stream-json" else result), file=out)
        elif finished.unanswered and not request.quiet:
            print("stopped before the reply began; the chat is unchanged", file=err)
        elif not request.quiet:
            print(stat_line(finished.stats), file=err)
    return INTERRUPTED if finished.reason == "stopped" else 0


def _print_turn(
    chat: Chat,
    request: PrintRequest,
    out: TextIO,
    err: TextIO,
    tokenizer: Any = None,
    sampling: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[TurnFinished, list[str]]:
    """Print the events of a turn; returns the last one. `tokenizer`: names the tokens of log-probabilities."""
    on_screen, before = out.isatty(), ""
    notices: list[str] = []
    finished: TurnFinished | None = None
    for event in map(_worded, chat.send(request.question, schema=request.schema, **sampling)):
        if isinstance(event, Notice):
            notices.append(event.text)
        if request.output == "stream-json" and not isinstance(event, TurnFinished):
            print(json.dumps(_event_json(event, tokenizer)), file=out, flush=True)
            continue
        match event:
            case TextDelta(text, thinking=False) if request.output == "text":
                # A pipe gets the exact text, as from git or curl; a terminal must not obey what a model wrote.
                out.write(clean(text, before) if on_screen else text)
                before = (before + text)[-CONTEXT:]
                out.flush()
            case Notice(text):
                print(clean(text), file=err)
            case TurnFinished():
                finished = event
    if request.output == "text":
        print(file=out, flush=True)
    assert finished is not None
    if request.output == "text":
        for call in finished.tool_calls:  # they are no text of the reply, and nothing here runs them
            print(clean(f"→ {call.name}({call.arguments})"), file=err)
    return finished, notices


def _worded(event: TurnEvent) -> TurnEvent:
    """A notice that names command-line options instead of Python arguments."""
    if isinstance(event, NotSaved):
        return replace(event, text=event.text.removesuffix(MEANWHILE))  # the process ends before space is freed
    if isinstance(event, PromptEvicted):
        return replace(event, text=evicted_text(event.overflow, "--window {}".format))
    if not isinstance(event, NoAnswer):
        return event
    quiet = "--no-think" if event.can_be_quiet else ""
    text = no_answer_text(event.num_tokens, event.reason, event.thinking, "--max-tokens", quiet)
    return replace(event, text=text)


def open_cache(model: Model, path: Path) -> PromptCache:
    """Open a named prompt cache, ours or an imported one."""
    return model.import_mlx_lm(path) if path.suffix == ".safetensors" else model.load_cache(path)


@contextmanager
def _chat(model: Model, request: PrintRequest, cache: CacheConfig | None) -> Iterator[Chat]:
    if request.cache is not None:
        chat = model.chat(cache=open_cache(model, request.cache))
    elif request.resume is None:
        chat = model.chat(request.system, cache, autosave=request.save)
        chat.record_as_run()
    else:
        model.open_store_for_one_reply()
        if request.has_own_bounds:
            cache, why = fitting(cache, model.make_cache)
            if why:
                print(clean(why), file=sys.stderr)
        is_fork = request.fork and request.save
        chat = model.reopen(request.resume, cache=cache, fork=is_fork, own=False)
        chat.record_as_run(is_fork=is_fork)
        if not request.save:
            chat.detach()
    if request.own is not None:
        chat.own_settings = request.own
        if request.resume is not None and "system" in request.own.preset_values:
            chat.system = request.system
    if request.think is not None:
        chat.thinking = request.think
    with close_before_ending(lambda: chat.cancel(keep_message=True)):
        try:
            yield chat
        finally:
            if notice := chat.close():
                print(clean(notice), file=sys.stderr)
            model.close()


@contextmanager
def _interrupts(chat: Chat) -> Iterator[None]:
    """Let the first Ctrl+C stop the reply and keep it; a second one interrupts the process."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        chat.cancel()

    with handle_interrupts(stop) as before:
        yield


def _restored(chat: Chat) -> str:
    """One line about restored rows; "" if there are none."""
    back = chat.restored
    if back is None or not (back.tokens or back.notice):
        return ""
    if back.notice:
        return clean(back.notice)
    evicted = f" + {back.evicted:,} evicted" if back.evicted else ""
    return f"restored {back.tokens - back.evicted:,} tok{evicted} in {back.seconds:.2f}s"


def _event_json(event: PrefillProgress | TextDelta | Notice, tokenizer: Any) -> dict[str, Any]:
    name = "prefill" if isinstance(event, PrefillProgress) else "text" if isinstance(event, TextDelta) else "notice"
    fields = asdict(event)
    if not fields.get("restarts"):  # rare
        fields.pop("restarts", None)
    if fields.pop("logprobs", ()) and isinstance(event, TextDelta):
        fields["logprobs"] = logprobs_json(event.logprobs, tokenizer)
    return {"type": name, **fields}


def logprobs_json(logprobs: Sequence[TokenLogprobs], tokenizer: Any) -> list[dict[str, Any]]:
    """Log-probabilities with the text of each token; characters of several tokens are incomplete."""

    def named(token: int, logprob: float) -> dict[str, Any]:
        return {"token": token, "text": decode(tokenizer, [token]), "logprob": round(logprob, 6)}

    return [{**named(each.token, each.logprob), "top": [named(*one) for one in each.top]} for each in logprobs]


def result_json(chat: Chat, model: Model, finished: TurnFinished) -> dict[str, Any]:
    """Object that `--output-format json` prints. Units: seconds, bytes, tokens."""
    import mlx.core as mx

    stats = finished.stats
    return {
        "chat_id": chat.session_id,
        "turn_id": None if finished.unanswered else len(chat.messages) - 1,
        "text": finished.text,
        "thinking": finished.thinking,
        "model": model.name,
        "finish_reason": finished.reason,
        **({"tool_calls": [asdict(call) for call in finished.tool_calls]} if finished.tool_calls else {}),
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "cached_evicted_tokens": stats.cached_evicted_tokens,
            "completion_tokens": stats.generated_tokens,
            "decode_steps": stats.decode_steps,
            "drafted_tokens": stats.drafted_tokens,
            "accepted_tokens": stats.accepted_tokens,
            **({} if stats.reasoning_cut_at is None else {"reasoning_cut_at": stats.reasoning_cut_at}),
        },
        "timing": {
            "load_s": round(model.loaded.load_s, 4),
            "restore_s": round(chat.restored.seconds, 4) if chat.restored else 0.0,
            "ttft_s": round(stats.ttft_s, 4),
            "prefill_tps": round(stats.prefill_tps, 2),
            "decode_tps": round(stats.decode_tps, 2),
            "total_s": round(stats.total_s, 4),
        },
        "kv": {
            "bytes": stats.cache_bytes,
            "bits": stats.cache_bits,
            "tokens": stats.cache_tokens,
            "window": stats.cache_window,
            "evicted_tokens": stats.evicted_tokens,
            "disk_bytes": stats.disk_bytes,
            "disk_written_bytes": stats.disk_written_bytes,
        },
        "reuse": {"stopped_at": stats.reuse_stopped_at, "why": stats.reuse_stopped_why},
        "memory": {"active_bytes": mx.get_active_memory(), "peak_bytes": stats.peak_memory_bytes},
    }
