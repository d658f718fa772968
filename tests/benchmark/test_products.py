"""Matrix products are recorded with shapes, strides and dtypes, and repeated."""

import torch
from torch import nn

from recblr.benchmark.products import Operand, Products

CPU = torch.device("cpu")


def test_products_forward_and_backward() -> None:
    layer, x = nn.Linear(7, 3), torch.randn(5, 7)
    with Products() as recorded:
        layer(x).square().sum().backward()
        x + x
        x[:, :4].to(torch.bfloat16) @ x[:4].to(torch.bfloat16)
        torch.baddbmm(torch.zeros(1, 2).expand(3, 5, 2), torch.ones(3, 5, 4), torch.ones(3, 4, 2))
        torch.zeros(0, 4) @ torch.ones(4, 2)
    full, narrow = torch.float32, torch.bfloat16
    assert [operands for _, operands in recorded.calls] == [
        [((3,), (1,), full), ((5, 7), (7, 1), full), ((7, 3), (1, 7), full)],
        [((3, 5), (1, 3), full), ((5, 7), (7, 1), full)],
        [((5, 4), (4, 1), narrow), ((4, 7), (7, 1), narrow)],
        [((3, 5, 2), (0, 0, 1), full), ((3, 5, 4), (20, 4, 1), full), ((3, 4, 2), (8, 2, 1), full)],
        [((0, 4), (4, 1), full), ((4, 2), (2, 1), full)],
    ]
    repeat = recorded.repeat(CPU)
    with Products() as repeated:
        repeat()
    assert repeated.calls == recorded.calls


def test_a_buffer_is_random_and_as_small_as_possible() -> None:
    buffer = Operand((3, 4), (9, 2), torch.bfloat16).buffer(CPU)
    assert (buffer.shape, buffer.stride(), buffer.dtype) == ((3, 4), (9, 2), torch.bfloat16)
    assert buffer.untyped_storage().nbytes() == 2 * (1 + 2 * 9 + 3 * 2)
    assert buffer.float().std() > 0
