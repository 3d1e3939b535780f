"""A strict disk: what a power cut leaves of a recorded run is no more than was flushed, and what chance adds.

    call ──► Disk.apply        a write is pending until fsync or fdatasync of its file, a name until fsync of its folder
             Disk.cut(random)  ──► {path: bytes}: of what is pending, nothing, all, a torn beginning, or any sectors

This is less than any real file system gives: names may survive in any order, a file's length too, and flushing a file
says nothing about its name. Within a sector of 512 bytes a write is there or not, and leaves its neighbours alone, as
SQLite assumes as well ("powersafe overwrite").
"""

import itertools
import random
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from tests.crash.trace import Call, Failed

SECTOR = 512
WAYS = ("nothing", "all", "torn", "any")


@dataclass
class File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: the length becomes this

    def flush(self) -> None:
        for change in self.pending:
            _put(self.durable, change)
        self.pending.clear()

    def cut(self, chance: random.Random, way: str) -> bytes:
        if way == "nothing" or not self.pending:
            return bytes(self.durable)
        content = bytearray(self.durable)
        whole = len(self.pending) if way != "torn" else chance.randrange(len(self.pending))
        for change in self.pending[:whole]:
            for sector in [change] if way != "any" else _sectors(change):
                if way != "any" or chance.random() < 0.5:
                    _put(content, sector)
        if way == "torn":
            for sector in _sectors(self.pending[whole]):
                if chance.random() < 0.5:
                    _put(content, sector)
        return bytes(content)


@dataclass
class Folder:
    now: dict[str, Any] = field(default_factory=dict)
    durable: dict[str, Any] = field(default_factory=dict)
    pending: list[dict[str, Any]] = field(default_factory=list)  # name: File, Folder or None, which change together

    def change(self, names: dict[str, Any]) -> None:
        self.pending.append(names)
        _name(self.now, names)

    def flush(self) -> None:
        self.durable = dict(self.now)
        self.pending.clear()

    def cut(self, chance: random.Random, way: str) -> dict[str, Any]:
        names = dict(self.durable)
        survive = {"nothing": 0, "all": len(self.pending)}.get(way, chance.randint(0, len(self.pending)))
        for index, change in enumerate(self.pending):
            if chance.random() < 0.5 if way == "any" else index < survive:
                _name(names, change)
        return names


def _put(content: bytearray, change: tuple[int, bytes | None]) -> None:
    at, data = change
    end = at if data is None else at + len(data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[at:]
    else:
        content[at:end] = data


def _name(names: dict[str, Any], change: dict[str, Any]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _sectors(change: tuple[int, bytes | None]) -> list[tuple[int, bytes | None]]:
    at, data = change
    if data is None:
        return [change]
    edges = [at, *range((at // SECTOR + 1) * SECTOR, at + len(data), SECTOR), at + len(data)]
    return [(low, data[low - at : high - at]) for low, high in itertools.pairwise(edges)]


class Disk:
    """What lies under `root`, and the history, a file beside it that is no part of the disk."""

    def __init__(self, root: str, history: str, files: dict[str, bytes]) -> None:
        self._root, self._history = root.rstrip("/"), history
        self._folder = Folder()
        self._open: dict[int, Any] = {}  # by descriptor: File, Folder, or self for the history
        self._at: dict[int, int] = {}
        self.history = bytearray()
        for path, content in files.items():
            folder, name = self._walk(f"{self._root}/{path}", make=True)
            folder.now[name] = folder.durable[name] = File(bytearray(content))

    def apply(self, call: Call) -> bool:
        """Whether the disk or the history changed."""
        handler = getattr(self, f"_{call.name}", None)
        if handler is None:
            held = any(number in self._open for number in self._numbers(call)[:1])
            if held or any(text.startswith(self._root.encode()) for text in call.texts):
                raise Failed(f"the disk has no {call.name}")
            return False
        return bool(handler(call))

    def cut(self, chance: random.Random, way: str) -> dict[str, bytes]:
        """The files after a power cut now. -shm files are left out: SQLite makes them new."""
        found: dict[str, bytes] = {}
        self._cut(self._folder, "", found, chance, way)
        return found

    def _cut(self, folder: Folder, path: str, found: dict[str, bytes], chance: random.Random, way: str) -> None:
        for name, node in folder.cut(chance, way).items():
            if isinstance(node, Folder):
                self._cut(node, f"{path}{name}/", found, chance, way)
            elif not name.endswith("-shm"):
                found[path + name] = node.cut(chance, way)

    def killed(self, root: str, history: str) -> "Disk":
        """This disk, not cut: what is pending still is. Another process goes on with it, mounted elsewhere."""
        other = deepcopy(self)
        other._root, other._history, other._open, other.history = root, history, {}, bytearray()
        return other

    # Calls

    def _numbers(self, call: Call) -> list[int]:
        return [int(part) for part in call.others if part.lstrip("-").isdigit()]

    def _walk(self, path: str, make: bool = False) -> tuple[Folder, str]:
        parts = path[len(self._root) + 1 :].split("/")
        folder = self._folder
        for part in parts[:-1]:
            if make and part not in folder.now:
                folder.now[part] = folder.durable[part] = Folder()
            folder = folder.now[part]
        return folder, parts[-1]

    def _is_ours(self, path: str) -> bool:
        return path.startswith(f"{self._root}/")

    def _openat(self, call: Call) -> bool:
        path, flags = call.texts[0].decode(), call.others[2]
        self._open.pop(call.result, None)
        if path == self._history:
            self._open[call.result] = self
        if path == self._root:
            self._open[call.result] = self._folder
        if not self._is_ours(path):
            return False
        folder, name = self._walk(path)
        made = name not in folder.now
        if made:
            folder.change({name: File()})
        node = self._open[call.result] = folder.now[name]
        self._at[call.result] = 0
        if "O_TRUNC" in flags and not made:
            node.pending.append((0, None))
        return made or "O_TRUNC" in flags

    def _close(self, call: Call) -> bool:
        self._open.pop(self._numbers(call)[0], None)
        return False

    def _lseek(self, call: Call) -> bool:
        self._at[self._numbers(call)[0]] = call.result
        return False

    def _mmap(self, call: Call) -> bool:
        shared, descriptor = "MAP_SHARED" in call.others[3], int(call.others[4])
        node = self._open.get(descriptor) if shared else None
        if isinstance(node, File) and not any(
            held is node and name.endswith("-shm") for name, held in self._everywhere(self._folder)
        ):
            raise Failed("a mapped file is not on this disk")
        return False

    def _everywhere(self, folder: Folder) -> list[tuple[str, Any]]:
        inner = [found for node in folder.now.values() if isinstance(node, Folder) for found in self._everywhere(node)]
        return [*folder.now.items(), *inner]

    def _write(self, call: Call) -> bool:
        descriptor = self._numbers(call)[0]
        node, data = self._open.get(descriptor), call.texts[0][: call.result]
        if node is not None:
            node.pending.append((self._at[descriptor], data))
            self._at[descriptor] += call.result
        return node is not None

    def _writev(self, call: Call) -> bool:
        told = self._open.get(self._numbers(call)[0]) is self
        if told:
            self.history += b"".join(call.texts)[: call.result]
        return told

    def _pwrite64(self, call: Call) -> bool:
        descriptor, at = self._numbers(call)[0], self._numbers(call)[-1]
        if node := self._open.get(descriptor):
            node.pending.append((at, call.texts[0][: call.result]))
        return node is not None

    def _ftruncate(self, call: Call) -> bool:
        descriptor, length = self._numbers(call)
        if node := self._open.get(descriptor):
            node.pending.append((length, None))
        return node is not None

    def _fallocate(self, call: Call) -> bool:
        """The ballast: its bytes are worth nothing, so it stays empty here."""
        return False

    def _fsync(self, call: Call) -> bool:
        if node := self._open.get(self._numbers(call)[0]):
            node.flush()
        return node is not None

    _fdatasync = _fsync

    def _mkdir(self, call: Call) -> bool:
        path = call.texts[0].decode()
        if not self._is_ours(path):
            return False
        folder, name = self._walk(path)
        folder.change({name: Folder()})
        return True

    def _unlink(self, call: Call) -> bool:
        path = call.texts[0].decode()
        if not self._is_ours(path):
            return False
        folder, name = self._walk(path)
        folder.change({name: None})
        return True

    def _rename(self, call: Call) -> bool:
        old, new = (text.decode() for text in call.texts)
        if not self._is_ours(old):
            return False
        folder, name = self._walk(old)
        target, new_name = self._walk(new)
        if folder is not target:
            raise Failed("the disk moves nothing from folder to folder")
        folder.change({name: None, new_name: folder.now[name]})
        return True
