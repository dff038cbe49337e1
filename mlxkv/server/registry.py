"""Registry: the model that is loaded, its names, and the others that a request may have loaded in its place.

One model is in memory at a time. A request for another one waits until the replies of this one are complete. On the
event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mlxkv.server.errors import ApiError, busy, shown
from mlxkv.server.served_model import MAX_WAITING, ServedModel

Open = Callable[[str], Awaitable[ServedModel]]


class Registry:
    """The models of a server.

    Args:
        open_model: loads one by its name.
        first: the one that is loaded at once.
        others: those that may be loaded in its place.
    """

    def __init__(self, open_model: Open, first: str, others: Sequence[str] = ()) -> None:
        self._open = open_model
        self.names = tuple(dict.fromkeys([first, *others]))
        self.loaded_name = first
        self._loaded: ServedModel | None = None
        self._num_users = self._num_in_line = 0
        self._line = asyncio.Lock()  # first come, first served: nobody overtakes a request for another model
        self._is_unused = asyncio.Event()
        self._is_unused.set()
        self._created = int(time.time())

    async def start(self) -> ServedModel:
        """Load the first model."""
        async with self._line:
            return await self._load(self.loaded_name)

    async def close(self) -> None:
        """Stop what runs, and close the model."""
        if self._loaded is not None:
            await self._loaded.close()
            self._loaded = None

    @property
    def loaded(self) -> ServedModel | None:
        return self._loaded

    def resolve(self, name: str | None) -> str:
        """The name of a model by its id or alias; None: the loaded one.

        Raises:
            ApiError: no such model is served.
        """
        if name is None:
            return self.loaded_name
        if found := next((known for known in self.names if name == known or name in aliases(known)), None):
            return found
        names = ", ".join(self.names)
        raise ApiError(
            404, f"There is no model {shown(name)} here, but {names}; name one of these, or see `--models`.",
            "model", "model_not_found",
        )  # fmt: skip

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        """The model of a request, which stays loaded meanwhile.

        Raises:
            ApiError: no such model is served. MlxkvError: it cannot be loaded.
        """
        wanted = self.resolve(name)
        if self._num_in_line >= MAX_WAITING:
            raise busy(self._num_in_line)
        self._num_in_line += 1
        try:
            async with self._line:
                if self._loaded is None or self.loaded_name != wanted:
                    await self._is_unused.wait()
                    await self._load(wanted)
                served = self._loaded
                assert served is not None
                self._num_users += 1
                self._is_unused.clear()
        finally:
            self._num_in_line -= 1
        try:
            yield served
        finally:
            self._num_users -= 1
            if not self._num_users:
                self._is_unused.set()

    async def _load(self, name: str) -> ServedModel:
        if self._loaded is not None:
            await self._loaded.close()
            self._loaded = None
        self._loaded = await self._open(name)
        self.loaded_name = name
        return self._loaded

    def table(self, name: str) -> dict[str, Any]:
        """A model as /v1/models has it."""
        return {"id": name, "object": "model", "created": self._created, "owned_by": "mlxkv"}


def aliases(name: str) -> set[str]:
    """Shorter names of a model: the last part of a repository's id or of a folder's path, without a revision."""
    without = name.partition("@")[0] if not Path(name).is_absolute() else name
    return {without, without.rstrip("/").rsplit("/", 1)[-1]}
