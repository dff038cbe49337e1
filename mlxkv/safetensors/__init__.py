"""A strict reader and a writer of safetensors headers: every file is checked before MLX maps it.

`mx.load` trusts a header (some hostile files make it read foreign memory), hence the check. Knows no MLX and no
tensors' contents, only their names, types, shapes and offsets. Any thread may call it.
Format: https://huggingface.co/docs/safetensors, of which this accepts a subset.
"""
