"""The engine: commands in, events out. Import as `mlxkv.engine`.

`Dispatcher` handles one command after the other on its caller's thread; `Engine` runs one on a thread of its own.
"""

from mlxkv.engine.dispatcher import Dispatcher
from mlxkv.engine.thread import Engine

__all__ = ["Dispatcher", "Engine"]
