"""The cost of a RecBLR layer and of a causal attention layer by the length of the history.

Axes: N events of B histories, T events each, D the width of the layers, H heads.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recblr.errors import InputError
from recblr.models.fused_step import FusedStep
from recblr.models.recblr import PFFN, BehaviorLayer, RecBLR, RecBLRConfig
from recblr.progress import progress
from recblr.timing import medians, peak_bytes
from recblr.training.cuda_graph import Graphed
from recblr.training.step import autocast

LENGTHS = tuple(64 << n for n in range(10))  # 64 .. 32,768
EVENTS = {"cpu": 1 << 15, "cuda": 1 << 20}  # per call


class AttentionLayer(nn.Module):
    """:class:`BehaviorLayer` with causal attention instead of the recurrence.

    This is the layer of SASRec (arXiv 1808.09781) with the norms in the positions of RecBLR.
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
        return self._output(h, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def step(self, h: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One more event of each user: h (B, 1, D) → (B, 1, D).

        ``keys`` and ``values`` (B, H, T, D / H) hold the history; the step writes their last row.
        """
        q, keys[:, :, -1:], values[:, :, -1:] = self._qkv(h)
        return self._output(h, F.scaled_dot_product_attention(q, keys, values))

    def _qkv(self, h: Tensor) -> tuple[Tensor, ...]:
        return self.to_qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _output(self, h: Tensor, attended: Tensor) -> Tensor:
        h = self.attention_norm(self.out(attended.transpose(1, 2).flatten(2)) + h)
        return self.pffn_norm(self.pffn(h) + h)


def time_lengths(
    device: torch.device,
    lengths: Sequence[int] = LENGTHS,
    events: int | None = None,
    repeats: int = 5,
    limit: float = 5.0,
) -> dict[str, Any]:
    """Time training and one more event of a user, by the length of the history.

    Args:
        device: the device to measure.
        lengths: T, ascending, each a divisor of ``events``.
        events: N of a call; by default enough to keep the device busy.
        repeats: the calls for each length, of which the result is the median.
        limit: in seconds; if a call of the attention layer takes longer, greater lengths are skipped.

    Returns:
        ``events``, ``width`` and ``rows``. A row has the ``length``, and for ``recblr`` and
        ``attention`` each: ``event_ns``, nanoseconds per event of forward and backward (None if
        skipped); ``step_us``, microseconds of the next event of one user; on CUDA ``peak_mib`` of
        forward and backward.
    """
    events = EVENTS[device.type] if events is None else events
    config = RecBLRConfig(dropout=0.0)
    recblr, attention = BehaviorLayer(config).to(device), AttentionLayer(config).to(device)
    h = torch.randn(events, config.dim, device=device, requires_grad=True)
    rows: list[dict[str, Any]] = []
    skipped = False
    with progress("lengths", len(lengths)) as advance:
        for length in lengths:
            passes = _passes(recblr, attention, h, length)
            if skipped:
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
            skipped = skipped or times["attention"] > limit
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

    For RecBLR this is the served step of a whole model with one layer.
    """
    config = RecBLRConfig(layers=1)
    device = attention.out.weight.device
    model = RecBLR(1, config).to(device).eval()
    item, state = torch.zeros(1, dtype=torch.int64, device=device), model.initial_state(1)
    h = torch.randn(1, 1, config.dim, device=device)
    keys, values = h.new_zeros(2, 1, attention.heads, length + 1, config.dim // attention.heads)
    step = Graphed(FusedStep(model).step)
    attend = Graphed(lambda h: attention.step(h, keys, values))
    steps = {"recblr": lambda: step(item, state), "attention": lambda: attend(h)}
    return medians(steps, device, repeats)


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot the result of :func:`time_lengths`.

    Raises:
        InputError: matplotlib cannot write the file.
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
    # Blue and vermilion of the colour-blind safe palette of Okabe and Ito.
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
