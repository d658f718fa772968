"""Measurements in processes of their own, several of which share a device."""

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from threading import local

import torch

from recblr.paper.measurements import Measurement
from recblr.progress import NamedLines

Make = Callable[[Measurement], tuple[str, str]]
"""Make a measurement; return a reason and an error if it could not be made, otherwise twice ""."""
DIED = "process died"


class InProcess:
    """``make``, run in a process of the calling thread, which lives as long as the thread.

    A process that dies, killed for its memory for example, loses its measurement and is replaced.
    """

    def __init__(self, make: Make, jobs: int) -> None:
        self._make = make
        self._threads = max(1, torch.get_num_threads() // jobs)
        self._thread = local()

    def __call__(self, measurement: Measurement) -> tuple[str, str]:
        try:
            connection = self._connection()
            connection.send(measurement)
            answer: tuple[str, str] = connection.recv()
        except (EOFError, OSError):
            del self._thread.connection
            return DIED, "its process ended without a result"
        return answer

    def _connection(self) -> Connection:
        if not hasattr(self._thread, "connection"):
            context = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU
            self._thread.connection, theirs = context.Pipe()
            work = theirs, self._make, self._threads
            context.Process(target=_work, args=work, daemon=True).start()
            theirs.close()  # so that the end of the process ends the connection
        connection: Connection = self._thread.connection
        return connection


def _work(connection: Connection, make: Make, threads: int) -> None:
    """Make the measurements that arrive, until the other end is closed or Ctrl-C."""
    torch.set_num_threads(threads)
    stderr = sys.stderr
    try:
        while True:
            measurement: Measurement = connection.recv()
            sys.stderr = NamedLines(measurement.name, stderr)
            connection.send(make(measurement))
    except KeyboardInterrupt:  # of the terminal, which interrupts the other end too
        connection.send(("", ""))
    except EOFError:
        pass
    finally:
        sys.stderr = stderr
