"""PUBACKs that go out once the messages before them are durable: what comes in during an fsync shares the next."""

import asyncio
import logging

from simulator import mqtt
from simulator.connection import Connection
from simulator.tasks import Tasks
from simulator.telemetry import MessageStore

log = logging.getLogger(__name__)


class Acknowledger:
    def __init__(self, store: MessageStore, tasks: Tasks) -> None:
        self._store = store
        self._tasks = tasks
        self._waiting: list[tuple[Connection, int]] = []
        self._is_syncing = False

    def acknowledge(self, connection: Connection, packet_id: int) -> None:
        """In the order of the calls. Where it cannot be made durable the connection is closed instead."""
        self._waiting.append((connection, packet_id))
        if not self._is_syncing:
            self._is_syncing = True
            self._tasks.start(self._sync(), "hub: sync")

    async def _sync(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self._store.sync())
                except OSError as error:
                    log.error("messages could not be made durable: %s", error)
                    for connection, _ in group:
                        connection.close()
                    continue
                for connection, packet_id in group:
                    connection.send(mqtt.puback(packet_id))
        finally:
            self._is_syncing = False
