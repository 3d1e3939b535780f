"""The simulated cloud's clock: as the machine's, until it is told to run faster."""

import asyncio
import time


class Clock:
    """now: seconds since 1970, the machine's own while the rate is 1: else no token that a module signs would be good
    again. passed: seconds that never jump. Tokens and times to live go by now, waiting and edgeAgent by passed; stamps
    of messages by neither.
    """

    def __init__(self) -> None:
        self.rate = 1.0
        self._since = time.time()
        self._passed = self._ahead = 0.0
        self._changed = asyncio.Event()

    def now(self) -> float:
        return time.time() + self._ahead + (time.time() - self._since) * (self.rate - 1)

    def passed(self) -> float:
        return self._passed + (time.time() - self._since) * self.rate

    def run(self, rate: float) -> None:
        """Run so many times as fast as the machine's clock from now on."""
        self._ahead = self.now() - time.time() if rate != 1 else 0.0
        self._passed, self._since, self.rate = self.passed(), time.time(), rate
        self._changed.set()
        self._changed = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Until so many seconds of this clock have passed, also where its rate changes meanwhile."""
        end = self.passed() + seconds
        while (left := end - self.passed()) > 0:
            try:
                async with asyncio.timeout(left / self.rate):
                    await self._changed.wait()
            except TimeoutError:
                continue
