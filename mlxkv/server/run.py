"""Run the server: uvicorn, its signals, and the log on stderr.

SIGTERM and SIGINT end it after the replies that run; a second one ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from mlxkv.errors import ConfigError
from mlxkv.server.app import make_app
from mlxkv.server.endpoint import EndpointOptions
from mlxkv.server.registry import Registry
from mlxkv.server.security import Access
from mlxkv.server.served_model import ServedModel
from mlxkv.system.keep_awake import KeepAwake

if TYPE_CHECKING:
    from mlxkv.model import Model

_log = logging.getLogger("mlxkv.server")


@dataclass(frozen=True)
class ServerOptions:
    """What `mlxkv serve` was told.

    Attributes:
        port: 0 takes any that is free.
        models: the first one is loaded at once, the others may be on request.
        keeps_awake: keep the Mac awake while requests run.
    """

    access: Access
    port: int
    models: Sequence[str]
    endpoint: EndpointOptions
    keeps_awake: bool = True


class _Server(uvicorn.Server):
    """Ends at the second signal of any kind, and reports none as the cause of its end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        else:
            _log.info("ending after the replies that run; a second signal ends at once")
        self.should_exit = True


def serve(options: ServerOptions, load: Callable[[str, Event], Model]) -> int:
    """Serve until a signal; returns the exit code.

    Args:
        load: loads a model by its name, on a thread of the server's own.

    Raises:
        ConfigError: the address cannot be listened on. MlxkvError: the first model cannot be loaded.
    """
    listening = _listen(options.access.host, options.port)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    try:
        return asyncio.run(_serve(options, load, listening))
    finally:
        _log.removeHandler(handler)
        listening.close()


async def _serve(options: ServerOptions, load: Callable[[str, Event], Model], listening: socket.socket) -> int:
    async def open_model(name: str) -> ServedModel:
        _log.info("loading %s", name)
        served = await ServedModel.load(partial(load, name), options.endpoint)
        window = "any number of" if served.window is None else f"{served.window:,}"
        _log.info("%s is loaded: %d requests at once, in windows of %s tokens", name, served.num_slots, window)
        return served

    registry = Registry(open_model, options.models[0], options.models[1:])
    try:
        await registry.start()  # before anyone is let in; its error is the command's
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _log.info("listening on http://%s:%d/v1", shown, port)
        app = make_app(registry, options.access, keep_awake=KeepAwake(options.keeps_awake))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, log_level="warning",
            timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10,
        )  # fmt: skip
        await _Server(config).serve([listening])
    finally:
        await registry.close()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        info = socket.getaddrinfo(host, port, family if host != "localhost" else socket.AF_INET, socket.SOCK_STREAM)[0]
        found = socket.socket(info[0], socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(info[4])
        found.listen(256)
        found.setblocking(False)
    except OSError as error:
        raise ConfigError(
            f"The server cannot listen on {host}:{port} ({error.strerror or error}); choose another --port."
        ) from error
    return found
