"""The command line that continues a chat, for people to type."""

from __future__ import annotations

import shlex
from contextlib import suppress

from mlxkv.errors import SessionNotFoundError
from mlxkv.store.db.sessions import Sessions
from mlxkv.text.clean import clean

_LONGEST = 40  # characters of a title


def continue_command(sessions: Sessions, session_id: str) -> str:
    """`mlxkv -c` if that opens the session, else `mlxkv -r` with the beginning of its title, or with its id."""
    if sessions.latest(runs=False) == session_id:
        return "mlxkv -c"
    name = " ".join(clean(sessions.title_of(session_id)).split())[:_LONGEST].strip()
    with suppress(SessionNotFoundError):
        if sessions.find(name) == session_id:
            return f"mlxkv -r {shlex.quote(name)}"
    return f"mlxkv -r {session_id}"
