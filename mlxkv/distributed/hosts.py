"""The machines of `--hosts FILE`: MLX's hostfile, as `mlx.distributed_config` writes it. Pure but for reading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxkv.errors import ConfigError, quoted
from mlxkv.system.regular_file import read_bytes, reason

_MOST_BYTES = 1 << 20
_LOCAL = ("127.0.0.1", "localhost", "::1")
BACKENDS = ("ring", "jaccl", "jaccl-ring")


@dataclass(frozen=True)
class Host:
    """One machine: its name for ssh, its addresses, and for `jaccl` its RDMA device towards each machine."""

    ssh: str
    ips: tuple[str, ...]
    rdma: tuple[Any, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether it is reached without ssh."""
        return self.ssh in _LOCAL


@dataclass(frozen=True)
class Hosts:
    """What a hostfile says. `envs`: variables for every process, ("NAME=value", ...)."""

    hosts: tuple[Host, ...]
    backend: str = "ring"
    envs: tuple[str, ...] = ()
    python: str | None = None  # on the other machines; None: the same path as here

    def environ(self, first_port: int) -> tuple[dict[str, str], dict[str, str]]:
        """What `mlx.launch` sets for every rank: variables, and variables that name a file with this content."""
        variables = dict(env.split("=", 1) for env in self.envs)
        if self.backend == "ring":
            ports = iter(range(first_port, first_port + sum(len(host.ips) for host in self.hosts)))
            table = [[f"{ip}:{next(ports)}" for ip in host.ips] for host in self.hosts]
            return variables, {"MLX_HOSTFILE": json.dumps(table)}
        variables["MLX_JACCL_COORDINATOR"] = f"{self.hosts[0].ips[0]}:{first_port}"
        if self.backend == "jaccl-ring":
            variables["MLX_JACCL_RING"] = "1"
        return variables, {"MLX_IBV_DEVICES": json.dumps([list(host.rdma) for host in self.hosts])}


def read_hosts(path: Path) -> Hosts:
    """Read a hostfile: a list of hosts, or a table with `hosts`, `backend`, `envs` and (mlxkv's own) `python`.

    Raises:
        ConfigError: it cannot be read, or describes no group that this machine is the first of.
    """
    try:
        found = json.loads(read_bytes(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        why = reason(error)
        raise ConfigError(f"The hostfile {path} cannot be read ({why}); give the path of a JSON file.") from error
    table: Any = {"hosts": found} if isinstance(found, list) else found
    try:
        hosts = tuple(
            Host(str(h["ssh"]), tuple(map(str, h.get("ips", ()))), tuple(h.get("rdma", ()))) for h in table["hosts"]
        )
        made = Hosts(hosts, table.get("backend") or "ring", tuple(map(str, table.get("envs", ()))), table.get("python"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{path} is not a hostfile; it holds {{"hosts": [{{"ssh": "studio.local", "ips": ["10.0.0.1"]}}, ...]}}.'
        ) from error
    _check(made, path)
    return made


def _check(found: Hosts, path: Path) -> None:
    if found.backend not in BACKENDS:
        raise ConfigError(f"`backend` in {path} is {quoted(found.backend)}; it must be one of {', '.join(BACKENDS)}.")
    if len(found.hosts) < 2:
        raise ConfigError(f"{path} names fewer than two hosts; start mlxkv without --hosts, or add the others.")
    if wrong := next((env for env in found.envs if "=" not in env), None):
        raise ConfigError(f'`envs` in {path} has {quoted(wrong)}; write "NAME=value".')
    listening = found.hosts if found.backend == "ring" else found.hosts[:1]
    if bare := next((host.ssh for host in listening if not host.ips), None):
        raise ConfigError(f"{path} gives no `ips` of {bare}; `mlx.distributed_config` finds them.")
    if unsafe := next((host.ssh for host in found.hosts if host.ssh.startswith("-")), None):
        raise ConfigError(f"{path} has the host {quoted(unsafe)}, which ssh would take for an option.")
