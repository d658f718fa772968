"""The two-tree scan against the float64 loop, and the nodes of its trees against their products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recblr.ops import reference, tree

LENGTHS = [
    [1], [2], [3], [7, 8, 9], [63, 64, 65], [64, 64], [0, 5, 0, 1, 9, 0], [3, 200], [0], [0, 0], []
]  # fmt: skip


def inputs(lengths: list[int], channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha with some exactly 0 and exactly 1, u, offsets, start."""
    generator = torch.Generator().manual_seed(sum(lengths) * 100 + channels)
    n, b = sum(lengths), len(lengths)
    alpha, u, start = (
        torch.randn(rows, channels, generator=generator, dtype=torch.float64) for rows in (n, n, b)
    )
    alpha = (4 * alpha).sigmoid()
    alpha[::7], alpha[1::5] = 0, 1
    return alpha, u, torch.tensor([0, *lengths]).cumsum(0), start


def outputs_and_gradients(scan: reference.Scan, *arguments: Tensor) -> list[Tensor]:
    """h, last and the gradients of alpha, u, start for one fixed gradient of the outputs."""
    alpha, u, offsets, start = (t.detach().clone() for t in arguments)
    leaves = [t.requires_grad_() for t in (alpha, u, start)]
    h, last = scan(alpha, u, offsets, start)
    torch.manual_seed(0)
    total = (h * torch.randn_like(h)).sum() + (last * torch.randn_like(last)).sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [h.detach(), last.detach(), *gradients]


def assert_same(lengths: list[int], channels: int) -> None:
    arguments = inputs(lengths, channels)
    for ours, truth in zip(
        outputs_and_gradients(tree.linear_scan, *arguments),
        outputs_and_gradients(reference.linear_scan, *arguments),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_values_and_gradients_equal_those_of_the_loop(lengths: list[int], channels: int) -> None:
    assert_same(lengths, channels)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 4))
def test_any_lengths(lengths: list[int], channels: int) -> None:
    assert_same(lengths, channels)


def test_gradcheck() -> None:
    alpha, u, offsets, start = inputs([3, 0, 1, 5], 2)
    leaves = [t.requires_grad_() for t in (alpha, u, start)]
    assert torch.autograd.gradcheck(lambda a, u, s: tree.linear_scan(a, u, offsets, s), leaves)


@pytest.mark.parametrize("cut", range(14))
def test_a_sequence_in_two_pieces(cut: int) -> None:
    alpha, u, _, start = inputs([13], 3)

    def run(piece: slice, start: Tensor) -> tuple[Tensor, Tensor]:
        rows = alpha[piece]
        return tree.linear_scan(rows, u[piece], torch.tensor([0, len(rows)]), start)

    h, last = run(slice(0, 13), start)
    head, middle = run(slice(0, cut), start)
    tail, end = run(slice(cut, 13), middle)
    torch.testing.assert_close(torch.cat([head, tail]), h, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(end, last, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("other", [0, 1, 3, 4, 30, 100])
def test_padding_changes_no_bit(other: int) -> None:
    """The length of another sequence changes the padding, not the result."""
    alpha, u, _, start = inputs([3, other], 4)
    alone, last = tree.linear_scan(alpha[:3], u[:3], torch.tensor([0, 3]), start[:1])
    beside, both = tree.linear_scan(alpha, u, torch.tensor([0, 3, 3 + other]), start)
    assert torch.equal(beside[:3], alone)
    assert torch.equal(both[:1], last)


@pytest.mark.parametrize(
    ("lengths", "levels"),
    [([8, 8], [1, 2, 4, 8]), ([9], [1, 2, 4, 8, 16]), ([1, 0], [1]), ([5, 7], [1, 2, 4, 8])],
    ids=str,
)
def test_the_tree_has_the_fewest_levels(
    lengths: list[int], levels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def up_sweep(c: tree.Pair) -> list[tree.Pair]:
        tree1 = grow(c)
        seen.extend(alpha.shape[1] for alpha, _ in tree1)
        return tree1

    grow = tree.up_sweep
    monkeypatch.setattr(tree, "up_sweep", up_sweep)
    tree.linear_scan(*inputs(lengths, 2))
    assert seen == levels


def test_every_node_of_figure_3() -> None:
    """T = 8: node v of a level of width w covers the events v * 8 / w ... (v + 1) * 8 / w - 1."""
    c = tuple(t.view(1, 8, 3) for t in inputs([8], 3)[:2])
    start = torch.randn(1, 3, dtype=torch.float64)
    tree1 = tree.up_sweep((c[0], c[1]))
    tree2 = tree.down_sweep(tree1, start)
    assert [alpha.shape[1] for alpha, _ in tree1] == [h.shape[1] for h in tree2] == [1, 2, 4, 8]

    def brute(events: range) -> tuple[Tensor, Tensor]:
        """The product c_{l,r} of the events, and the state after them from ``start``."""
        alpha, beta = torch.ones(3).double(), torch.zeros(3).double()
        for t in events:
            alpha, beta = c[0][0, t] * alpha, c[0][0, t] * beta + c[1][0, t]
        return torch.stack([alpha, beta]), alpha * start[0] + beta

    for pairs, states in zip(tree1, tree2, strict=True):
        span = 8 // states.shape[1]
        for v in range(states.shape[1]):
            node, _ = brute(range(v * span, (v + 1) * span))
            _, before = brute(range(v * span))
            torch.testing.assert_close(torch.stack([t[0, v] for t in pairs]), node)
            torch.testing.assert_close(states[0, v], before)
