"""The processes that share a model, as `mlx.launch` starts them: which one this is, and how many there are.

`mlx.launch` describes the group in environment variables, and MLX connects the processes. On the MLX thread.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Literal

from mlxkv.arguments import shown
from mlxkv.errors import ConfigError, MachineError, first_line

Wish = Literal["auto", "tensor", "pipeline"]
WISHES: tuple[Wish, ...] = ("auto", "tensor", "pipeline")

FILE_PREFIX = "mlxkv-hosts-"  # of temporary files that describe the group to MLX
_RANK = "MLX_RANK"
_OTHERS = ("MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR", "NCCL_HOST_IP")  # one of them for each backend


def rank_given(environ: Mapping[str, str] = os.environ) -> int | None:
    """The rank that `mlx.launch` gave this process; None: it was started alone. Imports no mlx."""
    rank = environ.get(_RANK, "")
    return int(rank) if rank.isdecimal() and any(environ.get(name) for name in _OTHERS) else None


_wish: list[Wish] = []  # of the command line, at most one


def set_wish(wish: Wish) -> None:
    """How the command line wants models to be split."""
    _wish[:] = [wish]


def wish_given() -> Wish | None:
    """How to split the models of this command; None for a process that was started alone."""
    return None if rank_given() is None else (_wish or ["auto"])[0]


def join_group() -> Any | None:
    """MLX's group, once all its processes are connected; None for a process that was started alone.

    Raises:
        MachineError: the others cannot be reached.
    """
    if rank_given() is None:
        return None
    import mlx.core as mx

    try:
        group = mx.distributed.init(strict=True)
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"The machines of this group cannot be connected ({first_line(error)}); check that each runs the same "
            "command and that the addresses of the hostfile reach one another."
        ) from error
    finally:
        for path in filter(_is_ours, (os.environ.get(name, "") for name in _OTHERS)):
            os.unlink(path)
    return group if group.size() > 1 else None


def _is_ours(path: str) -> bool:
    """Whether this is a file that `control.temporary` made."""
    return os.path.basename(path).startswith(FILE_PREFIX) and os.path.isfile(path)


def refuse_alone(wish: Wish) -> None:
    """Raises ConfigError: a split was asked for, and this process is alone."""
    if wish != "auto":
        raise ConfigError(
            f"`distributed` is {wish!r}, and this process was started alone; start it on several machines with "
            "`mlx.launch --hosts a,b -- python script.py`, or leave it out."
        )


def check_wish(name: str, value: Any) -> Wish:
    """Raises ConfigError: no such split."""
    if value not in WISHES:
        raise ConfigError(f"`{name}` is {shown(value)}; it must be {', '.join(map(repr, WISHES[:-1]))} or 'pipeline'.")
    return value


def machine_name() -> str:
    """This machine's name, for sentences."""
    return socket.gethostname().removesuffix(".local") or "localhost"
