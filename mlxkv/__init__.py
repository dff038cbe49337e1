"""mlxkv: local chat on Apple silicon with a rotating, preallocated KV cache that lives on disk between runs."""
