"""How cost grows with the length of a history: a RecBLR layer beside a causal attention layer.

Axes: N events of B histories, T events each, D the width of the layers, H heads.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr.benchmark.step import served_step
from recblr.errors import InputError
from recblr.models.recblr import PFFN, BehaviorLayer, RecBLR, RecBLRConfig
from recblr.progress import progress
from recblr.timing import medians, peak_bytes
from recblr.training.cuda_graph import Graphed
from recblr.training.step import autocast

LENGTHS = tuple(64 << n for n in range(10))  # 64 .. 32,768
EVENTS = {"cpu": 1 << 15, "cuda": 1 << 20}  # of a call


class AttentionLayer(nn.Module):
    """Causal attention in place of the recurrence, the rest as in :class:`BehaviorLayer`.

    This is the layer of SASRec (arXiv 1808.09781), with its norms where RecBLR has them.
    """

    def __init__(self, config: RecBLRConfig, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.pffn = PFFN(config)
        self.pffn_norm = nn.LayerNorm(config.dim)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, T, D) → (B, T, D)."""
        q, k, v = self._qkv(h)
        return self._rest(h, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def step(self, h: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One more event of each user: h (B, 1, D) → (B, 1, D).

        ``keys`` and ``values`` (B, H, T, D / H) hold the history; their last row is filled here.
        """
        q, keys[:, :, -1:], values[:, :, -1:] = self._qkv(h)
        return self._rest(h, F.scaled_dot_product_attention(q, keys, values))

    def _qkv(self, h: Tensor) -> tuple[Tensor, ...]:
        return self.to_qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _rest(self, h: Tensor, attended: Tensor) -> Tensor:
        h = self.attention_norm(self.out(attended.transpose(1, 2).flatten(2)) + h)
        return self.pffn_norm(self.pffn(h) + h)


def time_lengths(
    device: torch.device,
    lengths: Sequence[int] = LENGTHS,
    events: int | None = None,
    repeats: int = 5,
    limit: float = 5.0,
) -> dict[str, Any]:
    """Cost of training on an event, and of one more event, by the length of the history.

    Args:
        device: where to run.
        lengths: T, rising, each a divisor of ``events``.
        events: N of a call; by default enough to keep the device busy.
        repeats: calls a length; the median counts.
        limit: seconds of a call; attention that takes longer is not tried at greater lengths.

    Returns:
        ``events``, ``width`` and ``rows``. A row has its ``length`` and for ``recblr`` and
        ``attention`` each ``event_ns`` of an event forward and backward (None where not tried),
        ``step_us`` of one user's next event, and on CUDA ``peak_mib`` of forward and backward.
    """
    events = EVENTS[device.type] if events is None else events
    config = RecBLRConfig(dropout=0.0)
    recblr, attention = BehaviorLayer(config).to(device), AttentionLayer(config).to(device)
    h = torch.randn(events, config.dim, device=device, requires_grad=True)
    rows: list[dict[str, Any]] = []
    tried = True
    with progress("lengths", len(lengths)) as advance:
        for length in lengths:
            passes = _passes(recblr, attention, h, length)
            if not tried:
                del passes["attention"]
            times = medians(passes, device, repeats)
            steps = _time_steps(attention, length, 40 * repeats)
            row: dict[str, Any] = {"length": length}
            for name in ("recblr", "attention"):
                row[name] = {
                    "event_ns": times[name] / events * 1e9 if name in times else None,
                    "step_us": steps[name] * 1e6,
                }
                if device.type == "cuda":
                    row[name]["peak_mib"] = (
                        peak_bytes(passes[name]) / 2**20 if name in passes else None
                    )
            rows.append(row)
            tried = tried and times["attention"] <= limit
            advance(1, f"{length:,} events")
    return {"events": events, "width": config.dim, "rows": rows}


def _passes(
    recblr: BehaviorLayer, attention: AttentionLayer, h: Tensor, length: int
) -> dict[str, Callable[[], None]]:
    """Forward and backward of each layer over histories of ``length`` events, h (N, D)."""
    config = RecBLRConfig()
    offsets = torch.arange(0, len(h) + 1, length, device=h.device)
    state = h.new_zeros(len(offsets) - 1, config.conv_width, config.expansion * config.dim)
    g = torch.randn_like(h)

    def train_recblr() -> None:
        with autocast(h.device, "auto"):
            out, _ = recblr(h, offsets, state)
        torch.autograd.grad(out, [h, *recblr.parameters()], g)

    def train_attention() -> None:
        with autocast(h.device, "auto"):
            out = attention(h.view(-1, length, config.dim))
        torch.autograd.grad(out, [h, *attention.parameters()], g.view_as(out))

    return {"recblr": train_recblr, "attention": train_attention}


@torch.no_grad()
def _time_steps(attention: AttentionLayer, length: int, repeats: int) -> dict[str, float]:
    """Seconds of one more event of one user with ``length`` events of history.

    The step of RecBLR is that of a whole model of one layer, as it is served.
    """
    config = RecBLRConfig(layers=1)
    device = attention.out.weight.device
    model = RecBLR(1, config).to(device).eval()
    item, state = torch.zeros(1, dtype=torch.int64, device=device), model.initial_state(1)
    h = torch.randn(1, 1, config.dim, device=device)
    keys, values = h.new_zeros(2, 1, attention.heads, length + 1, config.dim // attention.heads)
    step, attend = served_step(model), Graphed(lambda h: attention.step(h, keys, values))
    steps = {"recblr": lambda: step(item, state), "attention": lambda: attend(h)}
    return medians(steps, device, repeats)


def draw(result: dict[str, Any], path: Path) -> None:
    """The picture of what :func:`time_lengths` found.

    Raises:
        InputError: matplotlib cannot write this file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    rows = result["rows"]
    panels = {
        "event_ns": "Training: time an event, ns",
        "peak_mib": "Training: peak memory, MiB",
        "step_us": "Serving: time of one more event, µs",
    }
    panels = {key: title for key, title in panels.items() if key in rows[0]["recblr"]}
    # Blue and vermilion of Okabe and Ito: the colour-blind tell them apart.
    lines = {"recblr": ("RecBLR layer", "#0072B2", "o"), "attention": ("attention", "#D55E00", "s")}
    figure = Figure(figsize=(4.4 * len(panels), 3.3), layout="constrained")
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    for axes, (key, title) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        ends = {}
        for name, (label, colour, marker) in lines.items():
            points = [(row["length"], row[name][key]) for row in rows if row[name][key] is not None]
            axes.loglog(*zip(*points, strict=True), color=colour, marker=marker, markersize=4)
            ends[points[-1]] = (label, colour)
        for end, (label, colour) in ends.items():
            above = end[1] == max(height for _, height in ends)
            axes.annotate(
                label, end, xytext=(0, 7 if above else -16), textcoords="offset points", ha="right",
                va="bottom" if above else "top", color=colour, weight="bold",
            )  # fmt: skip
        axes.margins(y=0.3)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("events of history")
        axes.set_xticks([row["length"] for row in rows[::3]])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(plain)
            axis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the picture cannot be written ({error})") from error
