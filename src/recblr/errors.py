"""Exceptions. Their messages are one line and say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Wrong input: a file, an id, a setting. The command line exits with code 2.

    The message says what is wrong, where (file, line, column, id), and what to do. It is made one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class NotFittedError(InputError, AttributeError):
    """A recommender is used before it is fitted or loaded. An AttributeError, for ``hasattr``."""


class DivergedError(ArithmeticError):
    """A loss, a weight or a score is not finite; nothing is ranked by it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of NumPy or PyTorch, on a CPU or a GPU, means that memory is exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def from_extra(name: str) -> Iterator[None]:
    """Turn a failed import inside the block into an InputError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; run pip install 'recblr[{name}]'"
        ) from error
