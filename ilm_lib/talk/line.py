"""The line before a model: one thread works, a piece of work after another in the order they came."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import Generic, TypeVar

T = TypeVar("T")
Event = tuple[T | None, BaseException | None]  # what was made; an error that ended it; neither: the end


class Busy(Exception):
    """The line is full.

    Attributes:
        seconds: after which it is worth asking again; as long as the last piece of work took, 1 at least.
    """

    def __init__(self, seconds: int):
        super().__init__(f"the line is full; try again in {seconds} s")
        self.seconds = seconds


class Line:
    """Where work waits for its turn. All of it is called in the one event loop; the work itself runs in a thread.

    Args:
        waiting: how many may wait behind the one that is served.
    """

    def __init__(self, waiting: int):
        self.waiting = waiting
        self.places: set[Place] = set()
        self.seconds = 1
        self._thread = ThreadPoolExecutor(1, "line")

    def join(self, work: Callable[[], Iterable[T]]) -> Place[T]:
        """A place for work whose values are passed on as they are made. Raises Busy."""
        if len(self.places) > self.waiting:
            raise Busy(self.seconds)
        place: Place[T] = Place(self)
        self.places.add(place)
        place.job = self._thread.submit(self._serve, work, place)
        return place

    async def close(self) -> None:
        """Everybody leaves; what is under way ends with its next value."""
        for place in [*self.places]:
            place.leave()
        await asyncio.to_thread(self._thread.shutdown)

    def _serve(self, work: Callable[[], Iterable[T]], place: Place[T]) -> None:
        started, error = time.monotonic(), None
        try:
            for value in work() if not place.left.is_set() else ():
                place.pass_on((value, None))
                if place.left.is_set():
                    break
        except BaseException as caught:  # whatever it is, it belongs to who waits for it
            error = caught
            if place.left.is_set():
                logging.getLogger(__name__).warning("work that nobody waited for failed: %s", type(caught).__name__)
        self.seconds = max(1, ceil(time.monotonic() - started))
        place.free()
        place.pass_on((None, error))


class Place(Generic[T]):
    """A place in the line: iterated, it gives the values of its work. It is free once the work is over, or left."""

    job: Future[None]

    def __init__(self, line: Line):
        self.left = threading.Event()
        self._line, self._loop = line, asyncio.get_running_loop()
        self._events: asyncio.Queue[Event[T]] = asyncio.Queue()

    def __aiter__(self) -> Place[T]:
        return self

    async def __anext__(self) -> T:
        value, error = await self._events.get()
        if error is not None:
            raise error
        if value is None:
            raise StopAsyncIteration
        return value

    def leave(self) -> None:
        """Nobody waits for the rest; harmless where there is none."""
        self.left.set()
        if self.job.cancel():  # it never began
            self._line.places.discard(self)

    def pass_on(self, event: Event[T]) -> None:
        """Called in the thread that works."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def free(self) -> None:
        """Called in the thread that works; the place is free before the end of its work is told."""
        self._loop.call_soon_threadsafe(self._line.places.discard, self)
