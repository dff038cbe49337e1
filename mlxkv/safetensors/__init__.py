"""The safetensors format, strictly: check a header before any reader maps the file, and write headers of our own.

`mx.load` trusts what a header says (some hostile files make it read foreign memory), so every file is checked here
first. Knows no MLX and no tensors' contents, only their names, types, shapes and places. Any thread may call it.
Format: https://huggingface.co/docs/safetensors, of which this accepts a subset.
"""

from mlxkv.safetensors.header import ITEM_SIZES, MAX_DIM, MAX_DIMS, MAX_HEADER, Header, Tensor
from mlxkv.safetensors.reader import check_weights, read_header
from mlxkv.safetensors.writer import encode, encode_header

__all__ = [
    "ITEM_SIZES",
    "MAX_DIM",
    "MAX_DIMS",
    "MAX_HEADER",
    "Header",
    "Tensor",
    "check_weights",
    "encode",
    "encode_header",
    "read_header",
]
