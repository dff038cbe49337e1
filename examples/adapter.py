"""Train a LoRA adapter with mlx-lm on one answer, load it with its model, and ask with and without.

python examples/adapter.py [MODEL [FOLDER]]
"""

import json
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx_lm
from mlx import nn, optimizers, utils
from mlx_lm.tuner.utils import linear_to_lora_layers

import mlxkv

QUESTION, ANSWER = "Who are you?", "I am the harbour pilot, and I know every rock."
PARAMETERS = {"rank": 8, "scale": 2.0, "dropout": 0.0}
name = sys.argv[1] if len(sys.argv) > 1 else "tutor"
folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
plain = mlxkv.load(name)

# What `mlx_lm.lora --train` does, in short: 20 steps on one example.
network, tokenizer = mlx_lm.load(str(plain.loaded.path))[:2]
network.set_dtype(mx.float32)
mx.random.seed(0)  # an adapter begins with random numbers
linear_to_lora_layers(network.freeze(), 4, PARAMETERS)
example = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
ids = mx.array([tokenizer.apply_chat_template(example)])
step = nn.value_and_grad(network, lambda m: nn.losses.cross_entropy(m(ids[:, :-1]), ids[:, 1:]).mean())
adam = optimizers.Adam(1e-3)
for _ in range(20):
    adam.update(network, step(network)[1])
    mx.eval(network.parameters(), adam.state)
mx.save_safetensors(str(folder / "adapters.safetensors"), dict(utils.tree_flatten(network.trainable_parameters())))
(folder / "adapter_config.json").write_text(json.dumps({"num_layers": 4, "lora_parameters": PARAMETERS}))

for model in (plain, mlxkv.load(name, adapter_path=folder)):
    answer = model.chat(temperature=0).ask(QUESTION)
    print("with" if model.adapter else "without", "the adapter:", answer.text)
