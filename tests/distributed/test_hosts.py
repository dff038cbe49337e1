"""Hostfiles, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxkv.distributed.group import rank_given
from mlxkv.distributed.hosts import read_hosts
from mlxkv.errors import ConfigError

TWO = [{"ssh": "localhost", "ips": ["10.0.0.1"]}, {"ssh": "studio.local", "ips": ["10.0.0.2", "10.0.1.2"]}]


def written(folder: Path, table: Any) -> Path:
    path = folder / "hosts.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def test_a_ring_has_a_port_for_each_address(tmp_path: Path) -> None:
    found = read_hosts(written(tmp_path, TWO))
    assert [host.is_local for host in found.hosts] == [True, False]
    assert found.environ(40_000) == (
        {},
        {"MLX_HOSTFILE": '[["10.0.0.1:40000"], ["10.0.0.2:40001", "10.0.1.2:40002"]]'},
    )


def test_jaccl_has_a_coordinator_and_devices(tmp_path: Path) -> None:
    hosts = [{**TWO[0], "rdma": [None, "rdma_en2"]}, {"ssh": "b", "rdma": ["rdma_en3", None]}]
    found = read_hosts(written(tmp_path, {"backend": "jaccl-ring", "envs": ["A=1=2"], "hosts": hosts}))
    variables, files = found.environ(40_000)
    assert variables == {"A": "1=2", "MLX_JACCL_COORDINATOR": "10.0.0.1:40000", "MLX_JACCL_RING": "1"}
    assert json.loads(files["MLX_IBV_DEVICES"]) == [[None, "rdma_en2"], ["rdma_en3", None]]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("{", "cannot be read"),
        ({"machines": TWO}, "is not a hostfile"),
        ("7", "is not a hostfile"),
        ([{"ip": "10.0.0.1"}], "is not a hostfile"),
        (TWO[:1], "fewer than two hosts"),
        ([TWO[0], {"ssh": "b"}], "gives no `ips` of b"),
        ([TWO[0], {"ssh": "-oProxyCommand=x", "ips": ["10.0.0.2"]}], "take for an option"),
        ({"backend": "mpi", "hosts": TWO}, "must be one of ring, jaccl, jaccl-ring"),
        ({"envs": ["A"], "hosts": TWO}, 'write "NAME=value"'),
    ],
)
def test_what_is_no_group_is_refused(table: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        read_hosts(written(tmp_path, table))


@pytest.mark.parametrize(
    ("environ", "rank"),
    [({"MLX_RANK": "1", "MLX_HOSTFILE": "x"}, 1), ({"MLX_RANK": "1"}, None), ({"MLX_HOSTFILE": "x"}, None), ({}, None)],
)
def test_the_rank_is_that_of_a_whole_description(environ: dict[str, str], rank: int | None) -> None:
    assert rank_given(environ) == rank
