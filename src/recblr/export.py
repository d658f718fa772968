"""Export the step and the scores of a recurrent model to ONNX, to serve it without PyTorch.

The memory of transitions is exported as the arrays of a sparse matrix.

The graphs are written by hand, one equation per line, not traced: in PyTorch a step is a pass over
packed histories of one event each. Every export compares them with the model in onnxruntime.

Axes: B users, D the width of a vector, V items, L layers, C channels, W the width of the convolution.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr import artifact
from recblr.errors import InputError, from_extra
from recblr.files import check_absent, new_folder, sha256
from recblr.memory import Memory
from recblr.models import lrurec
from recblr.models.gru4rec import GRU4Rec
from recblr.models.lrurec import LRURec
from recblr.models.model import RecurrentModel
from recblr.models.recblr import BDLRU, BDLRUOnly, BehaviorLayer, GatedRecurrentLayer, RecBLR
from recblr.recommender import load

TOLERANCE = 1e-4  # the largest difference of a hidden vector, state or score
_LARGEST = 2**31 - 2**24  # bytes of the item vectors: protobuf files are limited to 2 GiB
_OPSET, _IR = 17, 8  # the oldest with LayerNormalization; onnxruntime reads them since 1.13
_MARKER = "step.onnx"  # the file that identifies an export
_USERS, _EVENTS = 8, 64  # of the comparison with PyTorch
_FORMULA = (
    "score = score of the network + weight * log(1 + scale * m) + repeat * [item is in the history]; "
    "m = sum over the last `reach` items of the history of decay^age * B[item, :], age 0 the last; "
    "B is sparse: row i has values[ends[i]:ends[i + 1]] in the columns items[ends[i]:ends[i + 1]]"
)
_Tensors = Mapping[str, Mapping[str, Any]]  # inputs or outputs: name to type and shape


def export(folder: str | Path, out: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write an artifact as ``step.onnx``, ``score.onnx``, ``vocabulary.parquet``, ``manifest.json``
    and, if the model has a memory of transitions, ``memory.safetensors``.

    - step: items (B,) int64, rows of the vocabulary, and state (B, …), zero before the first event
      → hidden (B, D) and next_state (B, …). All except items are float32.
    - score: hidden (B, D) → scores (B, V) of the network, without the memory.
    - memory: the sparse matrix of (3) in :mod:`recblr.memory`: ends (V + 1,), and items and values (E,)
      of E entries. The manifest holds its numbers and the formula.

    The folder is written completely or not at all.

    Args:
        folder: the artifact.
        out: the new folder.
        overwrite: whether to replace an earlier export in ``out``.

    Returns:
        The manifest: the shapes of inputs and outputs, the digest of the artifact's manifest, the most
        events of a history that the model uses, the numbers of the memory, and the largest difference
        from PyTorch.

    Raises:
        InputError: there is no artifact, the model has no step, a package is missing, the folder cannot
            be written, or the difference is above :data:`TOLERANCE`.
    """
    folder, out = Path(folder), Path(out)
    if out.resolve() == folder.resolve():
        raise InputError(f"{out} is the folder of the model; choose another folder")
    check_absent(out, overwrite, _MARKER)
    with from_extra("export"):
        onnx, onnxruntime = import_module("onnx"), import_module("onnxruntime")
    recommender = load(folder, "cpu")
    network = recommender.network
    if recommender.model not in _STEPS:
        raise InputError(f"{recommender.model} cannot be exported; use one of {', '.join(_STEPS)}")
    assert isinstance(network, RecurrentModel)
    if network.feature_set:
        raise InputError(
            f"{folder}: the model reads the kinds of events or the gaps between them, which an export "
            "does not hold; train a model without them"
        )
    if network.item_embeddings.nbytes > _LARGEST:
        raise InputError(
            f"{folder}: the vectors of {len(network.item_embeddings):,} items take "
            f"{network.item_embeddings.nbytes / 2**30:.1f} GiB; an ONNX file is limited to 2 GiB"
        )
    state = _tensor("float32", "B", *network.initial_state(1).shape[1:])
    catalogue, width = network.item_embeddings.shape
    hidden, scores = _tensor("float32", "B", width), _tensor("float32", "B", catalogue)
    graphs = {
        "step": {
            "inputs": {"items": _tensor("int64", "B"), "state": state},
            "outputs": {"hidden": hidden, "next_state": state},
        },
        "score": {"inputs": {"hidden": hidden}, "outputs": {"scores": scores}},
    }
    with new_folder(out, overwrite, _MARKER) as new, torch.no_grad():
        for name, build in (("step", _STEPS[recommender.model]), ("score", _score)):
            graph = _Graph(onnx)
            inputs = [_Value(graph, input_name) for input_name in graphs[name]["inputs"]]
            model = graph.model(name, build(network, *inputs), **graphs[name])
            onnx.save(model, new / f"{name}.onnx")
        memory = recommender.memory
        for file in ("vocabulary.parquet", *([] if memory is None else [artifact.MEMORY])):
            shutil.copy(folder / file, new)
        difference = _difference(network, new, onnxruntime)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{folder}: onnxruntime and PyTorch differ by {difference:.1e}, more than "
                f"{TOLERANCE:.0e}; nothing was written"
            )
        manifest: dict[str, Any] = {
            "format": 1,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                name: version(name) for name in ("recblr", "torch", "onnx", "onnxruntime")
            },
            "model": {
                "name": recommender.model,
                "digest": artifact.digest(folder),
                "max_length": recommender.training.max_length,
            },
            **graphs,
            "memory": None if memory is None else _describe_memory(memory),
            "files": {path.name: sha256(path) for path in sorted(new.iterdir())},
            "difference": difference,
        }
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _tensor(dtype: str, *shape: str | int) -> dict[str, Any]:
    return {"type": dtype, "shape": list(shape)}


def _describe_memory(memory: Memory) -> dict[str, Any]:
    return {
        "file": artifact.MEMORY, "weight": memory.weight, "scale": memory.scale,
        "repeat": memory.repeat, "reach": memory.config.reach, "decay": memory.config.decay,
        "formula": _FORMULA,
    }  # fmt: skip


def _difference(network: RecurrentModel, folder: Path, onnxruntime: Any) -> float:
    """The largest difference of a hidden vector, state or score over a sequence of random events."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # small graphs are slower on several threads
    step, score = (
        onnxruntime.InferenceSession(
            folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
        )
        for name in ("step", "score")
    )
    generator = torch.Generator().manual_seed(0)
    events = torch.randint(len(network.item_embeddings), (_EVENTS, _USERS), generator=generator)
    state = network.initial_state(_USERS)
    onnx_state = state.numpy()
    differences = []
    for items in events:
        hidden, state = network.step(items, state)
        onnx_hidden, onnx_state = step.run(None, {"items": items.numpy(), "state": onnx_state})
        (onnx_scores,) = score.run(None, {"hidden": onnx_hidden})
        scores = hidden @ network.item_embeddings.t()
        for ours, theirs in (
            (hidden, onnx_hidden), (state, onnx_state), (scores, onnx_scores)
        ):  # fmt: skip
            differences.append((ours - torch.from_numpy(theirs)).abs().amax())
    return float(torch.stack(differences).amax())


class _Graph:
    """Builds an ONNX graph."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, *inputs: "_Value | Tensor | float", **attributes: Any) -> "_Value":
        """Add a node of the ONNX operator ``kind`` on values of the graph and constants."""
        name = f"{kind}_{len(self.nodes)}"
        names = [self._name(value) for value in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [name], **attributes))
        return _Value(self, name)

    def _name(self, value: "_Value | Tensor | float") -> str:
        if isinstance(value, _Value):
            return value.name
        name = f"constant_{len(self.weights)}"
        array = torch.as_tensor(value).numpy()
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def model(
        self, name: str, results: Sequence["_Value"], inputs: _Tensors, outputs: _Tensors
    ) -> Any:
        """The checked ONNX model with ``results`` as its ``outputs``."""
        helper = self.onnx.helper
        for value, output in zip(results, outputs, strict=True):
            self.nodes.append(helper.make_node("Identity", [value.name], [output]))
        types = {"int64": self.onnx.TensorProto.INT64, "float32": self.onnx.TensorProto.FLOAT}
        infos = [
            [
                helper.make_tensor_value_info(key, types[tensor["type"]], tensor["shape"])
                for key, tensor in tensors.items()
            ]
            for tensors in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, name, *infos, initializer=self.weights)
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR)
        self.onnx.checker.check_model(model, full_check=True)
        return model


@dataclass(frozen=True)
class _Value:
    """A value of a graph; each operation on it adds a node to the graph."""

    graph: _Graph
    name: str

    def op(self, kind: str, *others: "_Value | Tensor | float", **attributes: Any) -> "_Value":
        return self.graph.add(kind, self, *others, **attributes)

    def __add__(self, other: "_Value | Tensor | float") -> "_Value":
        return self.op("Add", other)

    def __sub__(self, other: "_Value | Tensor | float") -> "_Value":
        return self.op("Sub", other)

    def __mul__(self, other: "_Value | Tensor | float") -> "_Value":
        return self.op("Mul", other)

    def __matmul__(self, other: Tensor) -> "_Value":
        return self.op("MatMul", other)

    def take(self, index: int | Sequence[int], axis: int) -> "_Value":
        """One element of ``axis``, without the axis, or several elements."""
        return self.op("Gather", torch.tensor(index, dtype=torch.int64), axis=axis)


_LayerStep = Callable[[Any, _Value, _Value], tuple[_Value, _Value]]
"""(layer, input (B, …), state before) → (output, state after)."""


def _stack(values: Sequence[_Value], axis: int) -> _Value:
    return _concat([value.op("Unsqueeze", torch.tensor([axis])) for value in values], axis)


def _concat(values: Sequence[_Value], axis: int) -> _Value:
    return values[0].op("Concat", *values[1:], axis=axis)


def _linear(x: _Value, layer: nn.Linear) -> _Value:
    product = x @ layer.weight.t()
    return product if layer.bias is None else product + layer.bias


def _norm(x: _Value, layer: nn.LayerNorm) -> _Value:
    return x.op("LayerNormalization", layer.weight, layer.bias, epsilon=layer.eps)


def _silu(x: _Value) -> _Value:
    return x * x.op("Sigmoid")


def _score(model: RecurrentModel, hidden: _Value) -> tuple[_Value]:
    return (hidden @ model.item_embeddings.t(),)


def _apply_layers(
    layers: nn.ModuleList, table: Tensor, step: _LayerStep, items: _Value, state: _Value
) -> tuple[_Value, _Value]:
    """Look up ``items`` in ``table`` (V, D) and apply the layers; state (B, L, …)."""
    h, states = items.graph.add("Gather", table, items), []
    for number, layer in enumerate(layers):
        h, after = step(layer, h, state.take(number, axis=1))
        states.append(after)
    return h, _stack(states, 1)


def _recblr(model: RecBLR, items: _Value, state: _Value) -> tuple[_Value, _Value]:
    """Equation numbers and lines of Algorithm 1 as in models/recblr.py."""
    return _apply_layers(
        model.layers, model.norm(model.item_embeddings), _behavior, items, state
    )  # (1)


def _behavior(layer: BehaviorLayer, h: _Value, before: _Value) -> tuple[_Value, _Value]:
    """h (B, D), before (B, W, C) → h, after (B, W, C)."""
    recurrent, pffn, pffn_norm = layer.recurrent, layer.pffn, layer.pffn_norm
    if isinstance(recurrent, GatedRecurrentLayer):
        out, after = _gated(recurrent, h, before)
    else:
        assert isinstance(recurrent, BDLRUOnly)
        out = _bd_lru(recurrent.lru, h, before.take(0, axis=1))
        after = _stack([out], 1)
    h = _norm(out + h, layer.recurrent_norm)
    if pffn is None or pffn_norm is None:
        return h, after
    return _norm(_linear(_silu(_linear(h, pffn.inner)), pffn.outer) + h, pffn_norm), after  # (4)


def _gated(layer: GatedRecurrentLayer, h: _Value, before: _Value) -> tuple[_Value, _Value]:
    """h (B, D), before (B, W, C) → output (B, D), after (B, W, C)."""
    start = before.take(0, axis=1)
    x, z = _linear(h, layer.to_x), _linear(h, layer.to_z)  # lines 1, 2
    if layer.conv is None:
        last = _bd_lru(layer.lru, _silu(x), start)
        after = _stack([last], 1)
    else:
        weight, bias = layer.conv.weight.squeeze(1).t(), layer.conv.bias  # (W, C), (C,)
        assert bias is not None
        kept = range(1, len(weight))
        inputs = _concat([before.take(kept, axis=1), _stack([x], 1)], 1)
        total = (inputs * weight).op("ReduceSum", torch.tensor([1]), keepdims=0)
        last = _bd_lru(layer.lru, _silu(total + bias), start)  # lines 4, 5
        after = _concat([_stack([last], 1), inputs.take(kept, axis=1)], 1)
    return _linear(last * _silu(z), layer.out), after  # lines 6, 7


def _bd_lru(lru: BDLRU, x: _Value, start: _Value) -> _Value:
    """(5)-(8) in terms of t = -log α, exact even where t is small and α is near 1.

    √(1 - α²) is √(tanh t · (1 + α²)). The gate is written out, as the runtime's sigmoid has an absolute
    error of 1e-7, too large for small t.
    """
    exp_minus_r = _linear(x, lru.recurrence_gate).op("Neg").op("Exp")
    t = (exp_minus_r + 1.0).op("Reciprocal") * F.softplus(lru.lam)
    alpha = t.op("Neg").op("Exp")
    beta = (t.op("Tanh") * (alpha * alpha + 1.0)).op("Sqrt")
    return alpha * start + beta * _linear(x, lru.input_gate).op("Sigmoid") * x


def _gru4rec(model: GRU4Rec, items: _Value, state: _Value) -> tuple[_Value, _Value]:
    h, after = _apply_layers(model.layers, model.item_embeddings, _gru, items, state)
    return _linear(h, model.out), after


def _gru(gru: nn.GRU, x: _Value, before: _Value) -> tuple[_Value, _Value]:
    """x (B, D), before (B, H) → h and after, both (B, H)."""
    input_weights, state_weights = gru.parameters()  # (3·H, D), (3·H, H)
    x_r, x_z, x_n = (x @ weight.t() for weight in input_weights.chunk(3))
    h_r, h_z, h_n = (before @ weight.t() for weight in state_weights.chunk(3))
    n = (x_n + (x_r + h_r).op("Sigmoid") * h_n).op("Tanh")
    h = n + (x_z + h_z).op("Sigmoid") * (before - n)
    return h, h


def _lrurec(model: LRURec, items: _Value, state: _Value) -> tuple[_Value, _Value]:
    """Equation numbers as in models/lrurec.py."""
    table = model.norm(model.embedding.weight)  # (7)
    h, after = _apply_layers(model.layers, table, _lru_layer, items, state)
    return h.op("Pad", torch.tensor([0, 0, 0, 1]), 1.0), after


def _lru_layer(layer: lrurec.Layer, x: _Value, before: _Value) -> tuple[_Value, _Value]:
    """x (B, D), before (B, C, 2), real and imaginary parts → h (B, D), after (B, C, 2)."""
    lru, feed_forward = layer.recurrent, layer.feed_forward
    rho, theta = torch.exp(-lru.nu_log.exp()), lru.theta_log.double().exp()
    cos, sin, gamma = rho * theta.cos().float(), rho * theta.sin().float(), lru.gamma_log.exp()
    # Both projections interleave real and imaginary parts.
    real, imaginary = range(0, 2 * len(rho), 2), range(1, 2 * len(rho), 2)
    u, weight = _linear(x, lru.input), lru.output.weight
    re, im = before.take(0, axis=2), before.take(1, axis=2)
    re, im = (
        re * cos - im * sin + u.take(real, axis=1) * gamma,
        re * sin + im * cos + u.take(imaginary, axis=1) * gamma,
    )
    y = re @ weight[:, 0::2].t() + im @ weight[:, 1::2].t() + lru.output.bias  # (5)
    h = _norm(y + x, lru.norm)
    inner = _linear(h, feed_forward.inner)
    inner = inner * 0.5 * ((inner * 0.5**0.5).op("Erf") + 1.0)  # GELU
    h = _norm(_linear(inner, feed_forward.outer) + h, feed_forward.norm)  # (8), (9)
    return h, _stack([re, im], 2)


_STEPS: dict[str, Callable[..., tuple[_Value, _Value]]] = {
    "gru4rec": _gru4rec,
    "lrurec": _lrurec,
    "recblr": _recblr,
}
