"""Begins a group: rank 0 gets its part of the model, every other process follows it and ends with it.

A process joins one group, once. On the MLX thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlxkv.distributed.group import Wish, join_group, refuse_alone
from mlxkv.distributed.link import Link, Op
from mlxkv.distributed.machines import Machines, end_at_exit, load_split
from mlxkv.distributed.split import Split
from mlxkv.distributed.worker import Worker
from mlxkv.models import LoadedModel

_joined: list[Link] = []  # at most one


def joined(call: Callable[[], None] | None = None) -> Link | None:
    """This process's end of the group, which is joined at the first call; None: the process was started alone.

    Raises:
        MachineError: the others cannot be reached.
    """
    if not _joined:
        group = join_group()
        if group is None:
            return None
        link = Link(group, call)
        _joined.append(link)
        if link.rank == 0:
            end_at_exit(link)
    return _joined[0]


def load_together(
    name: str, wish: Wish, load: Callable[[str, Split | None], LoadedModel], *, limited: bool, adapter: str | None
) -> LoadedModel:
    """Rank 0's part of the model. In every other process this follows rank 0, with its own `name`, and never returns.

    Args:
        load: loads a model by its name; where there is a Split, as its part.

    Raises:
        MlxkvError: see `load_split`; or a split was asked for and the process is alone.
    """
    link = joined()
    if link is None:
        refuse_alone(wish)
        return load(name, None)
    if link.rank:
        names = [name]  # its own path; models that are loaded later have rank 0's name
        follow(link, lambda table, split: load(names.pop() if names else table["name"], split))
    table = {"name": name, "distributed": wish, "limited": limited, "adapter": adapter}
    link.send(Op.LOAD, ids=list(json.dumps(table).encode()))
    loaded, split = load_split(link, name, wish, lambda split: load(name, split))
    link.rest()
    return replace(loaded, machines=Machines(link, split))


def follow(
    link: Link, load: Callable[[dict[str, Any], Split], LoadedModel], sleep: Callable[[], bool] | None = None
) -> None:
    """Follow rank 0 until it ends, then end this process."""
    Worker(link, load, sleep).run()
    # Not by an exception: the caller's code belongs to rank 0, and threads of MLX may wait for a machine that is gone.
    os._exit(0)
