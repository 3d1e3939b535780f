"""The slow twin of the decode kernels: bit by bit, with plain int and bytes, from the definition of a DBC signal."""

import struct

from edge.manifest import DecoderManifest, Message, Signal, pgn_of

EXTENDED = 1 << 31


def extract(message: Message, payload: bytes, can_id: int = 0) -> dict[str, int | float]:
    """Raw values by signal name: those whose bits are all in the payload, and whose selector selects them."""
    found: dict[int, int | float] = {}

    def is_present(index: int) -> bool:
        signal = message.signals[index]
        if not signal.of_id and max(_bits(signal)) >= 8 * len(payload):
            return False
        if signal.selector is None:
            return True
        return is_present(signal.selector) and any(
            low <= int(value(signal.selector)) <= high for low, high in signal.selected_by
        )

    def value(index: int) -> int | float:
        signal = message.signals[index]
        return _value(signal, can_id.to_bytes(4, "little") if signal.of_id else payload)

    for index in range(len(message.signals)):
        if is_present(index):
            found[index] = value(index)
    return {message.signals[index].name: raw for index, raw in found.items()}


def _bits(signal: Signal) -> list[int]:
    """The field's bits as bit numbers of the payload (8 * byte + bit), the least significant first."""
    if not signal.big_endian:
        return [signal.start + i for i in range(signal.length)]
    numbers = [signal.start]
    while len(numbers) < signal.length:  # down to bit 0 of a byte, then on at bit 7 of the next
        last = numbers[-1]
        numbers.append(last + 15 if last % 8 == 0 else last - 1)
    return numbers[::-1]


def _value(signal: Signal, payload: bytes) -> int | float:
    raw = 0
    for weight, number in enumerate(_bits(signal)):
        raw |= (payload[number // 8] >> number % 8 & 1) << weight
    if signal.is_float:
        size = signal.length // 8
        return float(struct.unpack({2: "<e", 4: "<f", 8: "<d"}[size], raw.to_bytes(size, "little"))[0])
    if signal.signed and raw >> (signal.length - 1):
        raw -= 1 << signal.length
    return raw


def message_of(bus: int, can_id: int, manifest: DecoderManifest) -> Message | None:
    """That of the identifier, else the first of its parameter group."""
    own = [message for message in manifest.messages if manifest.buses.index(message.bus) == bus]
    exact = [m for m in own if m.id | (EXTENDED if m.extended else 0) == can_id]
    group = [m for m in own if m.is_by_pgn and can_id >> 29 == 4 and m.pgn == pgn_of(can_id & 0x1FFFFFFF)]
    return next(iter(exact + group), None) if bus < len(manifest.buses) else None
