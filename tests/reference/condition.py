"""The slow twin of conditions: the syntax tree itself, walked at every frame, with None for undefined.

Written from docs/campaigns.md. A frame is a hit where the condition is true and the frame carries one of its
operands, or where it becomes true.
"""

import ast
import math
from collections.abc import Sequence

from edge.manifest import DecoderManifest, Message, Signal, no_values
from edge.vss_signal import VssSignal
from tests.reference.extract import extract, message_of
from tests.reference.transport import Transport, in_segments
from tests.reference.vss import vss_value
from tests.strategies import Frame


class SlowCondition:
    def __init__(self, text: str, manifest: DecoderManifest, cooldown_us: int = 0) -> None:
        self.tree = ast.parse(text, mode="eval").body
        self.manifest = manifest
        self.cooldown_us = cooldown_us
        self.clock: int | None = None
        self.start = 0
        self.values: dict[str, float | None] = {}
        self.raws: dict[str, float] = {}
        self.texts: dict[str, str | None] = {}  # of VSS paths
        self.seen: dict[str, int] = {}
        self.samples: dict[str, list[tuple[int, float]]] = {}
        self.states: dict[int, object] = {}
        self.was_true = False
        self.quiet: float = -math.inf
        self.evaluated = self.cooled = 0
        self.transport = Transport(manifest)
        self.operands = {name for node in ast.walk(self.tree) if (name := self.name(node)) in self.known()}

    def known(self) -> set[str]:
        own = {
            f"{bus}{m.name}.{s.name}" for m in self.manifest.messages for s in m.signals for bus in ("", m.bus + ".")
        }
        return own | {vss.path for vss in self.manifest.vss}

    def run(self, frames: Sequence[Frame]) -> list[int]:
        return [number for number, frame in enumerate(frames) if self.step(frame)]

    def step(self, frame: Frame) -> bool:
        time_us, bus, can_id, _, payload = frame
        if self.clock is None:
            self.clock = self.start = time_us
        self.clock = max(self.clock, time_us)
        carries = not self.is_segment(bus, can_id) and self.take(bus, can_id, payload)
        before = len(self.transport.messages)
        self.transport.feed([frame])
        for _, bus, can_id, payload in self.transport.messages[before:]:  # that this frame completes
            carries |= self.take(bus, can_id, payload)
        is_true = self.value(self.tree) is True
        self.evaluated += carries
        is_hit = is_true and (carries or not self.was_true)
        self.was_true = is_true
        if is_hit and self.clock < self.quiet:
            self.cooled += 1
            return False
        if is_hit:
            self.quiet = self.clock + self.cooldown_us
        return is_hit

    def is_segment(self, bus: int, can_id: int) -> bool:
        mine = [m for m in self.manifest.messages if self.manifest.buses.index(m.bus) == bus]
        return in_segments(mine, can_id) is not None

    def take(self, bus: int, can_id: int, payload: bytes) -> bool:
        """The operands of a frame, or of a message that was put together; whether there was one."""
        assert self.clock is not None
        message = message_of(bus, can_id, self.manifest)
        carries = False
        found = extract(message, payload, can_id & 0x1FFFFFFF) if message is not None else {}
        for signal in message.signals if message is not None else ():
            assert message is not None
            paths = self.paths(message, signal)
            for name in (f"{message.name}.{signal.name}", f"{message.bus}.{message.name}.{signal.name}", *paths):
                if signal.name in found and name in self.operands:
                    carries = True
                    raw = float(found[signal.name])
                    if any(low <= found[signal.name] <= high for low, high, _ in no_values(message, signal)):
                        raw = math.nan
                    value = finite(raw * float(signal.factor) + float(signal.offset))
                    if name in paths:
                        value, self.texts[name] = vss_value(paths[name], None if math.isnan(raw) else int(raw), value)
                    self.raws[name], self.values[name], self.seen[name] = raw, value, self.clock
                    if value is not None:
                        self.samples.setdefault(name, []).append((self.clock, value))
        return carries

    def paths(self, message: Message, signal: Signal) -> dict[str, VssSignal]:
        places = [(m, s) for _, m, s in self.manifest.names()]
        return {vss.path: vss for vss in self.manifest.vss if places[vss.signal] == (message, signal)}

    def name(self, node: ast.AST) -> str | None:
        return ast.unparse(node) if isinstance(node, ast.Attribute) else None

    def signal(self, name: str):  # type: ignore[no-untyped-def]
        for full, message, signal in self.manifest.names():
            if name in (full, f"{message.bus}.{full}"):
                return signal
        raise KeyError(name)

    def value(self, node: ast.expr) -> float | bool | None:
        assert self.clock is not None
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Attribute):
            return self.values.get(ast.unparse(node))
        if isinstance(node, ast.UnaryOp):
            value = self.value(node.operand)
            return None if value is None else (not value) if isinstance(node.op, ast.Not) else -value
        if isinstance(node, ast.BoolOp):
            values = [self.value(part) for part in node.values]
            decisive = isinstance(node.op, ast.Or)
            return decisive if decisive in values else None if None in values else not decisive
        if isinstance(node, ast.BinOp):
            a, b = self.value(node.left), self.value(node.right)
            if a is None or b is None or (isinstance(node.op, ast.Div) and b == 0):
                return None
            kind = type(node.op)
            return finite(
                a + b if kind is ast.Add else a - b if kind is ast.Sub else a * b if kind is ast.Mult else a / b
            )
        if isinstance(node, ast.Compare):
            return self.compare(node)
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        return self.call(node, node.func.id)

    def compare(self, node: ast.Compare) -> bool | None:
        left, right, op = node.left, node.comparators[0], type(node.ops[0])
        if isinstance(right, ast.Constant) and isinstance(right.value, str):
            name = ast.unparse(left)
            if name not in self.raws or math.isnan(self.raws[name]):
                return None
            if name in self.texts:
                vss = next(vss for vss in self.manifest.vss if vss.path == name)
                if vss.steps is None and self.texts[name] is None:
                    return None
                is_it = self.texts[name] == right.value
                return is_it if op is ast.Eq else not is_it
            is_it = self.signal(name).labels.get(int(self.raws[name])) == right.value
            return is_it if op is ast.Eq else not is_it
        a, b = self.value(left), self.value(right)
        if a is None or b is None:
            return None
        return {
            ast.Lt: a < b, ast.LtE: a <= b, ast.Gt: a > b, ast.GtE: a >= b, ast.Eq: a == b, ast.NotEq: a != b
        }[op]  # fmt: skip

    def call(self, node: ast.Call, name: str) -> float | bool | None:
        assert self.clock is not None
        if name in ("stale", "avg", "min_s", "max_s", "count"):
            signal, span_us = ast.unparse(node.args[0]), round(ast.literal_eval(node.args[1]) * 1e6)
            if name == "stale":
                return self.clock - self.seen.get(signal, self.start) >= span_us
            young = [value for at, value in self.samples.get(signal, []) if at > self.clock - span_us]
            if name == "count":
                return float(len(young))
            if not young:
                return None
            if name != "avg":
                return min(young) if name == "min_s" else max(young)
            total = 0.0
            for value in young:  # not sum(): it compensates
                total += value
            return finite(total / len(young))
        values = [self.value(argument) for argument in node.args[: 1 if name == "for_s" else None]]
        if name in ("abs", "min", "max"):
            if None in values:
                return None
            return abs(values[0]) if name == "abs" else min(values) if name == "min" else max(values)  # type: ignore
        value = values[0]
        key = id(node)
        if name == "for_s":
            if value is not True:
                self.states.pop(key, None)
                return value
            since = self.states.setdefault(key, self.clock)
            return self.clock - since >= round(ast.literal_eval(node.args[1]) * 1e6)  # type: ignore[operator]
        if value is None:
            return None
        last = self.states.get(key)
        self.states[key] = value
        if last is None or last == value:
            return False
        return True if name == "changed" else value is (name == "rising")


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
