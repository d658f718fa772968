"""Recommend ten items for a history with an exported model, without torch.

Needs onnxruntime, numpy, pyarrow and safetensors.

python examples/serve_onnx.py FOLDER ITEM ITEM …
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
from safetensors.numpy import load_file

folder, names = Path(sys.argv[1]), sys.argv[2:]
manifest = json.loads((folder / "manifest.json").read_text())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # a step of one user is too small for several threads
step, score = (
    onnxruntime.InferenceSession(folder / f"{name}.onnx", options) for name in ("step", "score")
)

ids = pq.read_table(folder / "vocabulary.parquet")["item_id"].to_pylist()
row_of = {str(item): row for row, item in enumerate(ids)}
history = [row_of[name] for name in names if name in row_of]
if not history:
    sys.exit("the model knows none of these items; give ids as in vocabulary.parquet")

state = np.zeros([1, *manifest["step"]["inputs"]["state"]["shape"][1:]], np.float32)
for row in history[-manifest["model"]["max_length"] :]:  # as many as recblr recommend uses
    hidden, state = step.run(None, {"items": np.array([row]), "state": state})
scores = score.run(None, {"hidden": hidden})[0][0]
if (memory := manifest["memory"]) is not None:
    matrix, m = load_file(folder / memory["file"]), np.zeros_like(scores)
    for age, row in enumerate(history[::-1][: memory["reach"]]):
        entries = slice(*matrix["ends"][row : row + 2])
        m[matrix["items"][entries]] += memory["decay"] ** age * matrix["values"][entries]
    scores += memory["weight"] * np.log1p(memory["scale"] * m)
scores[history] = -np.inf  # items already seen
for row in np.argsort(-scores)[:10]:
    if np.isfinite(scores[row]):
        print(f"{scores[row]:.4f}\t{ids[row]}")
