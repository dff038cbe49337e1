"""Sessions and prompt caches on disk, opened with `SessionStore`; docs/session-format.md describes the files."""

from mlxkv.protocol.status import SearchHit
from mlxkv.store.identity import ModelIdentity, identify
from mlxkv.store.prompts.kv_file import describe_prompt_file, read_prompt_file, write_prompt_file
from mlxkv.store.records import (
    Attachment,
    KVCommit,
    Restored,
    SessionRecord,
    ToolCall,
    TurnRecord,
    TurnState,
)
from mlxkv.store.session_store import SessionStore
from mlxkv.store.verify import Problem, VerifyReport

__all__ = [
    "Attachment",
    "KVCommit",
    "ModelIdentity",
    "Problem",
    "Restored",
    "SearchHit",
    "SessionRecord",
    "SessionStore",
    "ToolCall",
    "TurnRecord",
    "TurnState",
    "VerifyReport",
    "describe_prompt_file",
    "identify",
    "read_prompt_file",
    "write_prompt_file",
]
