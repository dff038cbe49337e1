"""Begins a group: rank 0 gets its part of the model, every other process follows it and ends with it.

A process joins one group, once. On the MLX thread.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxkv.config import Folders
from mlxkv.device import current_device
from mlxkv.distributed.connections import Connections
from mlxkv.distributed.control import Control
from mlxkv.distributed.group import Wish, join_group, rank_given, refuse_alone
from mlxkv.distributed.hosts import read_hosts
from mlxkv.distributed.link import Link, Op
from mlxkv.distributed.machines import Machines, load_split
from mlxkv.distributed.measure import examine
from mlxkv.distributed.split import Split
from mlxkv.distributed.stuck import end_if_stuck, place_of
from mlxkv.distributed.worker import Worker
from mlxkv.errors import MachineError
from mlxkv.models import LoadedModel, load_model

_LOST = "The connection to another machine was lost; start mlxkv again."
_joined: list[Link] = []  # at most one
_controls: list[Control] = []  # at most one


def start_hosts(path: Path) -> None:
    """Start the other processes of a hostfile; this one is rank 0, and joins them when it loads a model.

    Raises:
        ConfigError: see `read_hosts`. MachineError: one cannot be started.
    """
    control = Control(read_hosts(path))
    _controls.append(control)
    atexit.register(control.close)


def joined(joining: AbstractContextManager[None] | None = None) -> Link | None:
    """This process's end of the group, which is joined at the first call; None: the process was started alone.

    `joining`: what else happens meanwhile, in a process that rank 0 started.

    Raises:
        MachineError: the others cannot be reached.
    """
    if not _joined:
        control = _controls[0] if _controls else None
        connections, thread = Connections(), threading.get_ident()
        with (control.joining() if control is not None else None) or joining or nullcontext():
            group = join_group()
        if group is None:
            return None

        def when_lost() -> None:
            if _joined:
                _joined[0].is_cut = True
            end_if_stuck(
                lambda: _joined[0].place if _joined else place_of(thread),
                lambda: _joined[0].lost() if _joined else MachineError(_LOST),
                lambda: (control is not None and control.is_closing) or (bool(_joined) and _joined[0].is_lost),
            )

        connections.watch(when_lost)
        link = Link(group, control)
        if control is not None:
            control.watch(connections)
        _joined.append(link)
        if link.rank == 0:
            atexit.register(link.end)
    return _joined[0]


def examine_hosts(path: Path, name: str) -> Iterator[tuple[bool, str, str]]:
    """Start the machines of a hostfile and yield what `measure.examine` finds of them and of a model.

    Raises:
        ConfigError, MachineError: see `start_hosts` and `joined`.
    """
    start_hosts(path)
    link = joined()
    assert link is not None
    yield from examine(link, name, _controls[0].hosts.backend)


def load_together(
    name: str,
    wish: Wish,
    load: Callable[[str, Split | None], LoadedModel],
    *,
    limited: bool,
    adapter: str | None,
    folders: Folders | None,
) -> LoadedModel:
    """Rank 0's part of the model. In every other process this follows rank 0, with its own `name`, and never returns.

    Args:
        load: loads a model by its name; where there is a Split, as its part.
        folders: where the rows of this process's part are saved; None: by the environment.

    Raises:
        MlxkvError: see `load_split`; or a split was asked for and the process is alone.
    """
    link = joined()
    if link is None:
        refuse_alone(wish)
        return load(name, None)
    if link.rank:
        names = [name]  # its own path; models that are loaded later have rank 0's name
        follow(link, lambda table, split: load(names.pop() if names else table["name"], split), folders=folders)
    table = {"name": name, "distributed": wish, "limited": limited, "adapter": adapter}
    with link.held():
        link.send(Op.LOAD, ids=list(json.dumps(table).encode()))
        loaded, split = load_split(link, name, wish, lambda split: load(name, split))
    return replace(loaded, machines=Machines(link, split))


def follow_by_table(link: Link, sleep: Callable[[], bool] | None = None) -> None:
    """`follow` with the model that rank 0 names."""

    def load(table: dict[str, Any], split: Split) -> LoadedModel:
        device = None if table["limited"] else replace(current_device(), memory_limit=1 << 62)
        return load_model(table["name"], device=device, adapter=table["adapter"], split=split)

    follow(link, load, sleep=sleep)


def follow_if_launched() -> None:
    """In a process that `mlx.launch` started with another rank than 0: follow rank 0, and end."""
    if rank_given() and (link := joined()) is not None:
        follow_by_table(link)


def follow(
    link: Link,
    load: Callable[[dict[str, Any], Split], LoadedModel],
    *,
    sleep: Callable[[], bool] | None = None,
    folders: Folders | None = None,
) -> None:
    """Follow rank 0 until it ends, then end this process; see Worker."""
    code = 1
    try:
        Worker(link, load, sleep, folders).run()
        code = 0
    except Exception as error:  # rank 0 shows the last line, and sees the connection end
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        # Not by an exception: the caller's code belongs to rank 0, and threads of MLX may wait for one that is gone.
        sys.stdout.flush()
        os._exit(code)
