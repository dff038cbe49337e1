"""Training of the built-in model `tutor`: text, tokenizer, training, export, evaluation. See README.md.

Not part of the wheel. Only network.py, train.py and export.py need PyTorch, teacher.py scikit-learn;
the rest runs where mlxkv does.
"""
