"""The simulated cloud's clock: as the machine's, until it is told to run faster."""

import asyncio
import time


class Clock:
    """Seconds since 1970. Tokens, times to live and edgeAgent's waiting go by it; stamps of messages do not."""

    def __init__(self) -> None:
        self.rate = 1.0
        self._since = self._base = time.time()
        self._changed = asyncio.Event()

    def now(self) -> float:
        return self._base + (time.time() - self._since) * self.rate

    def run(self, rate: float) -> None:
        """Run so many times as fast as the machine's clock from now on, without a jump."""
        self._base, self._since, self.rate = self.now(), time.time(), rate
        self._changed.set()
        self._changed = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Until so many seconds of this clock have passed, also where its rate changes meanwhile."""
        end = self.now() + seconds
        while (left := end - self.now()) > 0:
            try:
                async with asyncio.timeout(left / self.rate):
                    await self._changed.wait()
            except TimeoutError:
                continue
