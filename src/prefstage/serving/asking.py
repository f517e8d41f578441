"""From many questions to a stream of answers: async inside, an iterator outside."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from queue import Queue
from threading import Thread
from typing import Generic, TypeVar

from prefstage.serving.client import ServerClient

T = TypeVar("T")
R = TypeVar("R")


class _End:
    """Marks the end of the results."""


def ask_each(
    client: ServerClient, items: Iterable[T], ask: Callable[[T], Awaitable[R]]
) -> Iterator[R]:
    """Ask about every item, `client.concurrency` at a time, and give results as they come.

    `ask` runs in an event loop on a thread of its own, so a slow consumer neither delays
    answers nor lets them time out. What must be kept whatever happens next (an answer that
    was paid for) is written to disk inside `ask`, right after it arrives.

    Args:
        client: Opened here, and closed at the end.
        items: What to ask about; taken one by one as requests become free.
        ask: Asks about one item through `client` and gives the result.

    Yields:
        The result of each item, in the order of arrival.

    Raises:
        Exception: The first that `ask` raised, after the requests in flight have been
            answered and their results yielded; no new ones are begun.
    """
    run = _Run(client, items, ask)
    run.thread.start()
    try:
        while not isinstance(result := run.results.get(), _End):
            yield result
    finally:
        run.cancel()
    if run.error is not None:
        raise run.error


class _Run(Generic[T, R]):
    def __init__(
        self, client: ServerClient, items: Iterable[T], ask: Callable[[T], Awaitable[R]]
    ) -> None:
        self.results: Queue[R | _End] = Queue()
        self.error: Exception | None = None
        self.thread = Thread(target=self._main, name="prefstage-asking", daemon=True)
        self._client, self._items, self._ask = client, iter(items), ask
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._answer_all())

    def cancel(self) -> None:
        """Stop what is still running and wait until it has stopped."""
        with suppress(RuntimeError):  # the loop is closed: all is done
            self._loop.call_soon_threadsafe(self._task.cancel)
        self.thread.join()

    def _main(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        except Exception as error:
            self.error = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self.results.put(_End())

    async def _answer_all(self) -> None:
        async with self._client:
            await asyncio.gather(*(self._worker() for _ in range(self._client.concurrency)))

    async def _worker(self) -> None:
        for item in self._items:  # shared: each item goes to one worker
            try:
                self.results.put(await self._ask(item))
            except Exception as error:  # the others finish what is in flight
                self.error = self.error or error
            if self.error is not None:
                return
