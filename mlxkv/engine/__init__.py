"""The engine: commands in, events out. Import as `mlxkv.engine`.

`Desk` answers one command after the other on the thread it lives on; `Engine` is a thread with a desk, for a window.
"""

from mlxkv.engine.dispatcher import Desk
from mlxkv.engine.thread import Engine

__all__ = ["Desk", "Engine"]
