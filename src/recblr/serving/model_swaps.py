"""Change the served model, on request or as another server of the log does, and watch the storage."""

import asyncio
import logging
from pathlib import Path

from recblr.serving.engine import Engine
from recblr.serving.fair_queue import BusyError
from recblr.serving.http_input import RefusedError
from recblr.serving.model import ServedModel
from recblr.serving.storage import ServedModelInfo, StorageError

POLL_SECONDS = 1.0  # time between two looks at which model is to be served
CHECK_SECONDS = 0.5  # … two checks of the storage
ANSWER_SECONDS = 1.2  # for the storage to answer a check

log = logging.getLogger("recblr.storage")


class ModelSwaps:
    """Loads models and passes them to an engine, one at a time.

    Args:
        engine: serves the models.
        folder: the parent folder of the models that :meth:`swap` may load.

    Attributes:
        failure: why the model that is to be served could not be loaded; empty if it is served.
        log_failure: why events cannot be added; empty if they can.
        no_answer: set while the event log does not answer in time. A slow one may still take events.
        cache_failure: why states cannot be cached; empty if they can.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self._loading = asyncio.Lock()
        self.failure, self.log_failure, self.no_answer, self.cache_failure = "", "", "", ""

    async def swap(self, name: str) -> tuple[str, str]:
        """Serve the model in the folder ``name``; returns the hashes of the new and the old model.

        Raises:
            RefusedError: there is no such model, or another one is being loaded.
            InputError: the folder is not a valid model.
        """
        # Names are compared, so that no path is built from what a client sends.
        folders = {path.name: path for path in self._folder.iterdir() if not path.is_symlink()}
        if name not in folders:
            raise RefusedError(404, f"no model {name!r}")
        if self._loading.locked():
            raise RefusedError(429, "another model is being loaded")
        async with self._loading:
            before = self._engine.model.hash
            model = await asyncio.to_thread(ServedModel, folders[name])
            await asyncio.wrap_future(self._engine.swap(model))
        return model.hash, before

    async def follow(self) -> None:
        """Serve the model that other servers of the log swap in; runs until it is cancelled."""
        handled: tuple[ServedModelInfo, str] | None = None  # the model to serve, and the served one
        while True:
            try:
                wanted = await asyncio.wrap_future(self._engine.served_model())
                current = self._engine.model.hash
                if wanted and wanted.model != current and (wanted, current) != handled:
                    async with self._loading:
                        if await asyncio.wrap_future(self._engine.served_model()) != wanted:
                            continue  # this server has swapped in the meantime
                        model = await asyncio.to_thread(ServedModel, Path(wanted.folder))
                        await asyncio.wrap_future(self._engine.follow_swap(model))
                    handled = wanted, model.hash
                self.failure = ""
            except (StorageError, BusyError):
                pass  # the next round tries again
            except Exception as error:  # a folder that is missing or incomplete
                self.failure = str(error)
            await asyncio.sleep(POLL_SECONDS)

    async def watch(self) -> None:
        """Check the storage again and again; runs until it is cancelled."""
        while True:
            before = self.log_failure or self.no_answer or self.cache_failure
            failed = no_answer = ""
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    self.cache_failure = await asyncio.wrap_future(self._engine.check_storage())
            except TimeoutError:
                no_answer = "the event log does not answer"
            except (StorageError, BusyError) as error:
                failed = str(error)
            self.log_failure, self.no_answer = failed, no_answer
            now = self.log_failure or self.no_answer or self.cache_failure
            if bool(now) != bool(before):
                log.warning("%s", now or "the storage works again")
            await asyncio.sleep(CHECK_SECONDS)
