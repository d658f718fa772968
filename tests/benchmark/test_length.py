"""The length benchmark: its attention layer, its rows, its plot."""

from pathlib import Path

import pytest
import torch

from recblr.benchmark.length import AttentionLayer, draw, time_lengths
from recblr.errors import InputError
from recblr.models.recblr import RecBLRConfig

CPU = torch.device("cpu")


@torch.no_grad()
def test_attention_is_causal_and_steps_equal_one_pass() -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(RecBLRConfig(dim=12, dropout=0.0)).double()
    h = torch.randn(3, 7, 12, dtype=torch.float64)
    out = layer(h)
    keys, values = torch.zeros(2, 3, 2, 7, 6, dtype=torch.float64)
    for t in range(7):
        step = layer.step(h[:, t : t + 1], keys[:, :, : t + 1], values[:, :, : t + 1])
        torch.testing.assert_close(step, out[:, t : t + 1])
    later = h.clone()
    later[:, 4:] += 1
    assert layer(later)[:, :4].equal(out[:, :4])


def test_attention_against_a_sum() -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(RecBLRConfig(dim=4, dropout=0.0), heads=1).double()
    h = torch.randn(1, 5, 4, dtype=torch.float64)
    q, k, v = layer.to_qkv(h[0]).chunk(3, 1)
    attended = torch.stack(
        [torch.softmax(k[: t + 1] @ q[t] / 2, 0) @ v[: t + 1] for t in range(5)]  # 2 = √D
    )
    inner = layer.attention_norm(layer.out(attended) + h[0])
    torch.testing.assert_close(layer(h)[0], layer.pffn_norm(layer.pffn(inner) + inner))


def test_lengths_are_timed_until_attention_takes_too_long() -> None:
    result = time_lengths(CPU, lengths=(1, 8, 32), events=32, repeats=1, limit=0.0)
    assert (result["events"], result["width"]) == (32, 64)
    assert [row["length"] for row in result["rows"]] == [1, 8, 32]
    for number, row in enumerate(result["rows"]):
        assert row["recblr"]["event_ns"] > 0
        assert (row["attention"]["event_ns"] is None) == (number > 0)
        assert min(row[name]["step_us"] for name in ("recblr", "attention")) > 0
        assert "peak_mib" not in row["recblr"]


@pytest.mark.gpu
def test_memory_of_attention_and_recurrence_on_a_gpu() -> None:
    result = time_lengths(torch.device("cuda"), lengths=(64, 1024), events=4096, repeats=1)
    for row in result["rows"]:
        assert row["recblr"]["peak_mib"] > 4096 * 64 * 4 / 2**20
        assert row["attention"]["peak_mib"] > 0


def result_of(*keys: str) -> dict[str, object]:
    return {
        "rows": [
            {"length": 64, "recblr": dict.fromkeys(keys, 9.0), "attention": dict.fromkeys(keys, 7)},
            {"length": 512, "recblr": dict.fromkeys(keys, 9.0), "attention": dict.fromkeys(keys)},
        ]
    }


def test_the_plot_has_a_panel_for_each_measurement(tmp_path: Path) -> None:
    from matplotlib.image import imread

    widths = []
    for keys in (("event_ns", "step_us"), ("event_ns", "step_us", "peak_mib")):
        draw(result_of(*keys), tmp_path / "picture.png")
        picture = imread(tmp_path / "picture.png")
        assert (picture[..., :3].min(), picture[..., :3].max()) == (0, 1)
        widths.append(picture.shape[1])
    assert widths[0] < widths[1]


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no/a\.png: the picture cannot be written"):
        draw(result_of("event_ns"), tmp_path / "no/a.png")
    with pytest.raises(InputError, match=r"a\.nonsense: the picture cannot be written"):
        draw(result_of("event_ns"), tmp_path / "a.nonsense")
