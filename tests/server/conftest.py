"""A server of the tiny model on a port of its own, for all tests of this folder."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import mlxkv
from mlxkv.config import Folders
from mlxkv.server.app import make_app
from mlxkv.server.endpoint import EndpointOptions
from mlxkv.server.registry import Registry
from mlxkv.server.security import Access
from mlxkv.server.served_model import ServedModel
from tests.server.local import CONFIG
from tests.tokenizers import tiny_folder


@dataclass
class Running:
    """A server on a thread.

    Attributes:
        registry: its models.
        opened: the folders of the models that were loaded, in order.
    """

    port: int
    registry: Registry
    loop: asyncio.AbstractEventLoop
    opened: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, function: Callable[[Any], Any]) -> Any:
        """The result of `function(served)` on the event loop."""

        async def run() -> Any:
            found = function(self.registry.loaded)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    first = tiny_folder(folder / "tiny", seed=9)
    other = tiny_folder(folder / "other", seed=1)
    folders = Folders.from_env({"MLXKV_HOME": str(folder / "home")})
    started, running = threading.Event(), list[Running]()
    listening = socket.create_server(("127.0.0.1", 0))

    async def open_model(name: str) -> ServedModel:
        options = EndpointOptions(CONFIG, num_slots=2)
        running[0].opened.append(Path(name).name)
        load = partial(_load, name, folders)
        return await ServedModel.load(load, options, max_waiting=2)

    async def serve() -> None:
        registry = Registry(open_model, str(first), [str(other)])
        running.append(Running(listening.getsockname()[1], registry, asyncio.get_running_loop()))
        config = uvicorn.Config(make_app(registry, Access(), keep_alive=0.01), log_config=None, lifespan="on")
        program = uvicorn.Server(config)
        stop.append(lambda: setattr(program, "should_exit", True))
        task = asyncio.ensure_future(program.serve([listening]))
        while not program.started and not task.done():
            await asyncio.sleep(0.01)
        started.set()
        await task

    stop: list[Callable[[], None]] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(120)
    yield running[0]
    stop[0]()
    thread.join()


def _load(name: str, folders: Folders, cancel: threading.Event) -> mlxkv.Model:
    return mlxkv.load(name, folders=folders, cancel=cancel)
