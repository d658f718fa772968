"""A recurrent model as ONNX: its step and its scores, to serve it where there is no PyTorch.

The memory of transitions is no graph: it is exported as the arrays of a sparse matrix.

The graphs are written an equation a line instead of traced: what a step is in PyTorch is the pass over
packed histories, of one event each. That they compute the same is measured at every export, in
onnxruntime.

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
from recblr.files import new_folder, sha256
from recblr.memory import Memory
from recblr.models import lrurec
from recblr.models.gru4rec import GRU4Rec
from recblr.models.lrurec import LRURec
from recblr.models.model import RecurrentModel
from recblr.models.recblr import BDLRU, BDLRUOnly, BehaviorLayer, GatedRecurrentLayer, RecBLR
from recblr.recommender import load

TOLERANCE = 1e-4  # of a hidden vector, state or score
_LARGEST = 2**31 - 2**24  # bytes of the items' vectors: a file of protobuf ends at 2 GiB
_OPSET, _IR = 17, 8  # the oldest with layer norms, which onnxruntime reads from 1.13 on
_USERS, _EVENTS = 8, 64  # looked at to find the difference
_FORMULA = (
    "score = score of the network + weight * log(1 + scale * m) + repeat * [item is in the history]; "
    "m = sum over the last `reach` items of the history of decay^age * B[item, :], age 0 the last; "
    "B is sparse: row i has values[ends[i]:ends[i + 1]] in the columns items[ends[i]:ends[i + 1]]"
)
_Ends = Mapping[str, Mapping[str, Any]]  # inputs or outputs: name to type and shape


def export(folder: str | Path, out: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write an artifact as ``step.onnx``, ``score.onnx``, ``vocabulary.parquet``, ``manifest.json``
    and, where the model has a memory of transitions, ``memory.safetensors``.

    - step: items (B,) int64, rows of the vocabulary, and state (B, …), zero before the first event
      → hidden (B, D) and next_state (B, …). Other than these float32.
    - score: hidden (B, D) → scores (B, V) of the network, without the memory.
    - memory: the sparse matrix of (3) in :mod:`recblr.memory`, ends (V + 1,), items and values (E,)
      of E entries; its numbers and the formula are in the manifest.

    The folder appears whole or not at all.

    Returns:
        The manifest: inputs and outputs with their shapes, the digest of the artifact's manifest,
        how many events of a history the model looks at, the numbers of the memory, and the largest
        difference from PyTorch.

    Raises:
        InputError: no artifact, a model without a step, a package is missing, the folder cannot be
            written, or the difference is above :data:`TOLERANCE`.
    """
    folder, out = Path(folder), Path(out)
    with from_extra("export"):
        onnx, onnxruntime = import_module("onnx"), import_module("onnxruntime")
    recommender = load(folder, "cpu")
    network = recommender.network
    if recommender.model not in _STEPS:
        raise InputError(
            f"{recommender.model} cannot be exported; models with a step are {', '.join(_STEPS)}"
        )
    assert isinstance(network, RecurrentModel)
    if network.item_embeddings.nbytes > _LARGEST:
        raise InputError(
            f"{folder}: the vectors of its {len(network.item_embeddings):,} items take "
            f"{network.item_embeddings.nbytes / 2**30:.1f} GiB, and an ONNX file holds 2"
        )
    if out.resolve() == folder.resolve():
        raise InputError(f"{out} is the model itself; choose another folder")
    state = _about("float32", "B", *network.initial_state(1).shape[1:])
    catalogue, width = network.item_embeddings.shape
    hidden, scores = _about("float32", "B", width), _about("float32", "B", catalogue)
    graphs = {
        "step": {
            "inputs": {"items": _about("int64", "B"), "state": state},
            "outputs": {"hidden": hidden, "next_state": state},
        },
        "score": {"inputs": {"hidden": hidden}, "outputs": {"scores": scores}},
    }
    with new_folder(out, overwrite, "step.onnx") as new, torch.no_grad():
        for name, build in (("step", _STEPS[recommender.model]), ("score", _score)):
            graph = _Graph(onnx)
            inputs = [_Value(graph, given) for given in graphs[name]["inputs"]]
            model = graph.model(name, build(network, *inputs), **graphs[name])
            onnx.save(model, new / f"{name}.onnx")
        memory = recommender.memory
        for file in ("vocabulary.parquet", *([] if memory is None else [artifact.MEMORY])):
            shutil.copy(folder / file, new)
        difference = _difference(network, new, onnxruntime)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{folder}: in onnxruntime it differs from PyTorch by {difference:.1e}, more than "
                f"{TOLERANCE:.0e}; nothing is written"
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
            "memory": None if memory is None else _about_memory(memory),
            "files": {path.name: sha256(path) for path in sorted(new.iterdir())},
            "difference": difference,
        }
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _about(kind: str, *shape: str | int) -> dict[str, Any]:
    return {"type": kind, "shape": list(shape)}


def _about_memory(memory: Memory) -> dict[str, Any]:
    numbers = {name: getattr(memory, name) for name in ("weight", "scale", "repeat")}
    reach, decay = memory.config.reach, memory.config.decay
    return {
        "file": artifact.MEMORY, **numbers, "reach": reach, "decay": decay, "formula": _FORMULA,
    }  # fmt: skip


def _difference(network: RecurrentModel, folder: Path, onnxruntime: Any) -> float:
    """The largest one of a hidden vector, state or score while random events come in."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads that wait for one another are slower
    step, score = (
        onnxruntime.InferenceSession(
            folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
        )
        for name in ("step", "score")
    )
    generator = torch.Generator().manual_seed(0)
    events = torch.randint(len(network.item_embeddings), (_EVENTS, _USERS), generator=generator)
    ours = network.initial_state(_USERS)
    theirs = ours.numpy()
    differences = []
    for items in events:
        hidden, ours = network.step(items, ours)
        found, theirs = step.run(None, {"items": items.numpy(), "state": theirs})
        (scores,) = score.run(None, {"hidden": found})
        expected = hidden @ network.item_embeddings.t()
        for one, other in ((hidden, found), (ours, theirs), (expected, scores)):
            differences.append((one - torch.from_numpy(other)).abs().amax())
    return float(torch.stack(differences).amax())


class _Graph:
    """An ONNX graph in the making."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, *inputs: "_Value | Tensor | float", **attributes: Any) -> "_Value":
        """A node of this kind, an operator of ONNX, on values of the graph and constants."""
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

    def model(self, name: str, results: Sequence["_Value"], inputs: _Ends, outputs: _Ends) -> Any:
        """The ONNX model whose ``outputs`` are ``results``."""
        helper = self.onnx.helper
        for value, output in zip(results, outputs, strict=True):
            self.nodes.append(helper.make_node("Identity", [value.name], [output]))
        types = {"int64": self.onnx.TensorProto.INT64, "float32": self.onnx.TensorProto.FLOAT}
        ends = [
            [
                helper.make_tensor_value_info(end, types[about["type"]], about["shape"])
                for end, about in side.items()
            ]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, name, *ends, initializer=self.weights)
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR)
        self.onnx.checker.check_model(model, full_check=True)
        return model


@dataclass(frozen=True)
class _Value:
    """A value of a graph; what is done with it becomes nodes there."""

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
        """One of an axis, which goes, or several."""
        return self.op("Gather", torch.tensor(index, dtype=torch.int64), axis=axis)


_LayerStep = Callable[[Any, _Value, _Value], tuple[_Value, _Value]]
"""Of a layer, its input (B, …) and the state before it: its output and the state after."""


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


def _through(
    layers: nn.ModuleList, table: Tensor, step: _LayerStep, items: _Value, state: _Value
) -> tuple[_Value, _Value]:
    """The vectors of ``items`` in ``table`` (V, D), then layer by layer; state (B, L, …)."""
    h, states = items.graph.add("Gather", table, items), []
    for number, layer in enumerate(layers):
        h, after = step(layer, h, state.take(number, axis=1))
        states.append(after)
    return h, _stack(states, 1)


def _recblr(model: RecBLR, items: _Value, state: _Value) -> tuple[_Value, _Value]:
    """Equation numbers and lines of Algorithm 1 as in models/recblr.py."""
    return _through(model.layers, model.norm(model.item_embeddings), _behavior, items, state)  # (1)


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
    """(5)-(8) of t = -log α, in a form that loses no digits where t is small and nothing is forgotten.

    √(1 - α²) is √(tanh t · (1 + α²)). The runtime's own sigmoid is exact to 1e-7, not to digits.
    """
    less = _linear(x, lru.recurrence_gate).op("Neg").op("Exp")
    t = (less + 1.0).op("Reciprocal") * F.softplus(lru.lam)
    alpha = t.op("Neg").op("Exp")
    beta = (t.op("Tanh") * (alpha * alpha + 1.0)).op("Sqrt")
    return alpha * start + beta * _linear(x, lru.input_gate).op("Sigmoid") * x


def _gru4rec(model: GRU4Rec, items: _Value, state: _Value) -> tuple[_Value, _Value]:
    h, after = _through(model.layers, model.item_embeddings, _gru, items, state)
    return _linear(h, model.out), after


def _gru(gru: nn.GRU, x: _Value, before: _Value) -> tuple[_Value, _Value]:
    """x (B, D), before (B, H) → h and after, both (B, H)."""
    of_x, of_h = gru.parameters()  # (3·H, D), (3·H, H)
    r, z, n = (x @ weight.t() for weight in of_x.chunk(3))
    old_r, old_z, old_n = (before @ weight.t() for weight in of_h.chunk(3))
    new = (n + (r + old_r).op("Sigmoid") * old_n).op("Tanh")
    h = new + (z + old_z).op("Sigmoid") * (before - new)
    return h, h


def _lrurec(model: LRURec, items: _Value, state: _Value) -> tuple[_Value, _Value]:
    """Equation numbers as in models/lrurec.py."""
    table = model.norm(model.embedding.weight)  # (7)
    h, after = _through(model.layers, table, _lru_layer, items, state)
    return h.op("Pad", torch.tensor([0, 0, 0, 1]), 1.0), after


def _lru_layer(layer: lrurec.Layer, x: _Value, before: _Value) -> tuple[_Value, _Value]:
    """x (B, D), before (B, C, 2), real and imaginary parts → h (B, D), after (B, C, 2)."""
    lru, feed_forward = layer.recurrent, layer.feed_forward
    rho, theta = torch.exp(-lru.nu_log.exp()), lru.theta_log.double().exp()
    cos, sin, gamma = rho * theta.cos().float(), rho * theta.sin().float(), lru.gamma_log.exp()
    # On the other side of both projections real and imaginary parts take turns.
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
