"""Whole safetensors files for tests, from headers as the product writes them."""

from __future__ import annotations

from collections.abc import Mapping

from mlxkv.safetensors.writer import encode_header


def encode(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file of tensors, each given as dtype, shape and data."""
    sized = [(name, dtype, shape, len(data)) for name, (dtype, shape, data) in tensors.items()]
    return b"".join([encode_header(sized, metadata), *(tensors[name][2] for name in sorted(tensors))])
