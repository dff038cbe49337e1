"""How the built-in model `tutor` is made: text, tokenizer, training, export, figures. See README.md.

Not part of the wheel. Only network.py, train.py and export.py need PyTorch; the rest runs where mlxkv does.
"""
