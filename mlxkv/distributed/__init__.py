"""One model on several machines, by MLX's distributed backends and mlx-lm's splits of models.

Rank 0 has the chat, the store and the sampling; what it does to a cache it tells the others (`link.py`), which do the
same to their part of the model (`worker.py`). Knows no chat and no text.
"""
