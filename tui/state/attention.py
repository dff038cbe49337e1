"""What the terminal is told while nobody looks at the window: its title, and that something long has ended. Pure.

`tui/terminal_signals.py` has the sequences for it, `tui/app.py` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mlxkv.protocol.events import PullState
from mlxkv.text.clean import clean
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.labels import short_name
from mlxkv.tui.state.lists.choices import cut

LONG = 10.0  # seconds; what took less is not worth a sound
_WIDEST = 60  # cells of a title


class Work(StrEnum):
    """What may take long. The value says that it has ended."""

    REPLY = "The reply has ended"
    LOAD = "The model is loaded"
    DOWNLOAD = "The download has ended"


def title(state: ChatState) -> str:
    """`mlxkv: 63 %` of a prefill, a load or a download, `mlxkv: replying`, else the title of the chat."""
    reply = state.transcript.reply
    if reply is not None:
        prefill = None if reply.num_tokens else reply.prefill
        return _progress("replying", prefill.done, prefill.total) if prefill else "mlxkv: replying"
    if state.is_loading_now and state.loading is not None:
        return _progress(state.loading.phase, state.loading.done, state.loading.total)
    if state.is_pulling and state.pull is not None:
        return _progress("downloading", state.pull.done, state.pull.total)
    return f"mlxkv: {cut(clean(state.transcript.title), _WIDEST)}" if state.transcript.title else "mlxkv"


def _progress(what: str, done: int, total: int) -> str:
    return f"mlxkv: {100 * done // total} %" if total else f"mlxkv: {what}"


@dataclass
class Attention:
    """When each work began, in seconds."""

    _since: dict[Work, float] = field(default_factory=dict)

    def ended(self, state: ChatState, now: float) -> str:
        """A sentence about work that took long and has ended since the last call; "" if none has."""
        running = {
            Work.REPLY: state.transcript.reply is not None,
            Work.LOAD: state.is_loading_now,
            Work.DOWNLOAD: state.is_pulling,
        }
        over = [work for work, is_running in running.items() if work in self._since and not is_running]
        long = [work for work in over if now - self._since[work] >= LONG]
        for work in over:
            del self._since[work]
        for work, is_running in running.items():
            if is_running:
                self._since.setdefault(work, now)
        return _sentence(long[0], state) if long else ""


def _sentence(work: Work, state: ChatState) -> str:
    about = clean(state.transcript.title) if work is Work.REPLY else ""
    if work is Work.DOWNLOAD and state.pull is not None:
        about = short_name(clean(state.pull.name))
        if state.pull.state is not PullState.DONE:
            return f"The download has stopped: {about}"
    if work is Work.LOAD:
        about = state.model
        if not state.is_ready:
            return "The model is not loaded"
    return f"{work}: {cut(about, _WIDEST)}" if about else work
