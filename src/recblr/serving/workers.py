"""Several processes that serve on one port: start them, pass signals on, replace those that die."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory

from prometheus_client.multiprocess import mark_process_dead

from recblr.errors import InputError
from recblr.serving.metrics import FOLDER
from recblr.serving.settings import ServerSettings
from recblr.serving.storage import StorageError

RETRY_SECONDS = 1.0  # before a worker that did not start is replaced

log = logging.getLogger("recblr.workers")
spawn = multiprocessing.get_context("spawn")  # a fork would inherit threads of torch


@dataclass
class _Worker:
    """A process; ``starting`` gets a message when it is ready, and is None from then on."""

    process: SpawnProcess
    starting: Connection | None


class Workers:
    """The processes of a server. The socket is shared, so no connection is lost when one dies."""

    def __init__(self, settings: ServerSettings, bound: socket.socket) -> None:
        self._settings, self._bound = settings, bound
        self._workers: list[_Worker] = []
        self._ended_by: int | None = None  # a signal

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C.

        Raises:
            SystemExit: the first worker cannot start; it has said why.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, self._reload)
        with TemporaryDirectory(prefix="recblr-metrics-") as folder:
            os.environ[FOLDER] = folder
            self._start(first=True)  # the others follow when it is ready
            while self._workers:
                self._look()
        if self._ended_by == signal.SIGINT:
            raise KeyboardInterrupt

    def _look(self) -> None:
        """Wait until a worker is ready or has ended, and do what follows."""
        handles = [worker.starting for worker in self._workers if worker.starting]
        ready = wait([*handles, *(worker.process.sentinel for worker in self._workers)], 1.0)
        for worker in list(self._workers):
            if worker.process.sentinel in ready:
                self._replace(worker)
            elif worker.starting in ready and worker.starting:
                worker.starting = None
                while len(self._workers) < self._settings.workers and self._ended_by is None:
                    self._start()

    def _start(self, first: bool = False) -> None:
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_work, args=(self._settings, self._bound, sender, first))
        process.start()
        sender.close()
        self._workers.append(_Worker(process, receiver))

    def _replace(self, worker: _Worker) -> None:
        """Start another worker for one that has ended, unless the server ends."""
        self._workers.remove(worker)
        worker.process.join()
        mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]
        if self._ended_by is not None:
            return
        if worker.starting is not None and not self._workers:
            raise SystemExit(worker.process.exitcode)
        log.error("worker %s has ended (%s)", worker.process.pid, worker.process.exitcode)
        if worker.starting is not None:
            time.sleep(RETRY_SECONDS)
        self._start()

    def _end(self, number: int, _: object) -> None:
        self._ended_by = number
        for worker in self._workers:
            worker.process.terminate()

    def _reload(self, number: int, _: object) -> None:
        for worker in self._workers:
            if worker.starting is None and worker.process.pid:
                os.kill(worker.process.pid, signal.SIGHUP)


def _work(settings: ServerSettings, bound: socket.socket, ready: Connection, first: bool) -> None:
    """Serve in this process, until it gets SIGTERM or the process that started it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from recblr.serving import logs, server

    logs.configure()
    torch.set_num_threads(max(1, torch.get_num_threads() // settings.workers))
    try:
        server.serve(settings, bound, lambda: ready.send(None), announce=first)
    except (InputError, StorageError) as error:
        print(f"recblr: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
