"""What can go wrong, as exceptions whose message is one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A mistake in what the user gave: a file, an id, a setting. The command line exits with 2.

    The message is one line: what is wrong, where (file, line, column, id), and what to do.
    """


class DivergedError(ArithmeticError):
    """Training or scoring produced numbers that are not finite. Nothing is ranked with them."""


def out_of_memory(error: BaseException) -> bool:
    """Whether this is it, by whichever name NumPy and PyTorch give it on a CPU and on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def from_extra(name: str) -> Iterator[None]:
    """Imports inside need the packages of an extra; without one of them it is an InputError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; run pip install 'recblr[{name}]'"
        ) from error
