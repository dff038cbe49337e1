"""How a foreign error fits into a sentence of ours."""

from mlxkv.errors import first_line as first_line
