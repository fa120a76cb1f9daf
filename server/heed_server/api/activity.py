"""Whether edited requests are under way: what decides when the workers are polled."""

import asyncio


class Activity:
    """Counts edited requests between their admission and their end.

    Workers spin for a second after every call, so an idle server must not be polled.
    """

    def __init__(self) -> None:
        self._live = 0
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """An edited request was admitted."""
        self._live += 1
        self._changed.set()

    def end(self) -> None:
        """An edited request ended, however it did."""
        self._live -= 1
        self._changed.set()

    async def wait(self) -> None:
        """Return when a request is under way, or has ended since the last return."""
        await self._changed.wait()
        if not self._live:
            self._changed.clear()
