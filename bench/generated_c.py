"""The C that `cantools generate_c_source` makes, compiled with gcc -O3 and called in this process, to compare with.

It is called as its fast users call it: a table from (bus, identifier) to the unpack function, one struct a message,
over the same 24-byte frame records as ours. Identifiers of 29 bits lie in a hash table beside it. Generated C has no
parameter groups; by_pgn has the table hold identifiers without the bits that no group has, which is the least that
whoever wants to decode J1939 with it has to write.
"""

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cantools.database import Database
from cantools.database.can.c_source import generate

MAIN = """
#include <stdint.h>
#include <stddef.h>
#include <string.h>
{includes}

typedef int (*unpack_t)(void *, const uint8_t *, size_t);
typedef struct __attribute__((packed)) {{
    int64_t time_us; uint32_t id; uint8_t bus, length, flags, reserved;
    union {{ uint8_t data[8]; uint64_t slot; }};
}} frame_t;
typedef struct {{ unpack_t unpack; void *to; uint64_t key; }} entry_t;
static union {{ {members} }} out[{count}];
static entry_t table[{buses}][2048], extended[{size}];

static inline uint64_t key_of(uint8_t bus, uint32_t id) {{
    id &= 0x1fffffff;
    if ({by_pgn}) id &= (id >> 16 & 0xff) >= 240 ? 0x03ffff00 : 0x03ff0000;
    return (uint64_t)bus << 32 | id;
}}

static inline entry_t *find(uint64_t key) {{
    size_t i = key * 0x9E3779B97F4A7C15u >> 32 & ({size} - 1);
    while (extended[i].unpack && extended[i].key != key) i = (i + 1) & ({size} - 1);
    return &extended[i];
}}

static void add(uint8_t bus, uint32_t id, int is_extended, unpack_t unpack, void *to) {{
    entry_t *entry = is_extended ? find(key_of(bus, id)) : &table[bus][id];
    if (!entry->unpack) *entry = (entry_t){{unpack, to, key_of(bus, id)}};
}}

void prepare(void) {{
{fill}
}}

size_t decode(const frame_t *frames, const uint8_t *slots, size_t count) {{
    size_t known = 0;
    for (size_t i = 0; i < count; i++) {{
        const frame_t *f = &frames[i];
        const entry_t *entry;
        if (f->bus >= {buses}) continue;
        if (f->id < 2048) entry = &table[f->bus][f->id];
        else if (f->id >> 29 == 4) entry = find(key_of(f->bus, f->id));
        else continue;
        if (!entry->unpack) continue;
        known += entry->unpack(entry->to, f->length > 8 ? slots + 64 * f->slot : f->data, f->length) == 0;
    }}
    return known;
}}
"""


def build(buses: Sequence[Sequence[Any]], folder: Path, by_pgn: bool = False) -> ctypes.CDLL:
    """Generate, compile and load, for the messages of each bus as cantools holds them.

    decode(records, slots, count) returns how many frames were unpacked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    includes, fill, members, sources = [], [], [], []
    for bus, messages in enumerate(buses):
        name = f"b{bus}"
        files = (f"{name}.h", f"{name}.c", f"{name}_fuzzer.c")
        header, source, *_ = generate(Database(list(messages), strict=False), name, *files)
        (folder / files[0]).write_text(header)
        (folder / files[1]).write_text(source)
        includes.append(f'#include "{name}.h"')
        sources.append(str(folder / files[1]))
        for message in re.findall(r"^int (\w+)_unpack\(", header, re.MULTILINE):
            identifier = re.search(rf"#define {message.upper()}_FRAME_ID \((0x[0-9a-f]+)u\)", header)
            is_extended = re.search(rf"#define {message.upper()}_IS_EXTENDED \((\d)\)", header)
            if identifier is None or is_extended is None:
                raise ValueError(f"{files[0]}: no identifier of {message}; cantools names them in another way now")
            place = len(members)
            members.append(f"struct {message}_t m{place};")
            unpack = f"(unpack_t){message}_unpack"
            fill.append(f"    add({bus}, {identifier[1]}, {is_extended[1]}, {unpack}, &out[{place}]);")
    (folder / "main.c").write_text(
        MAIN.format(
            includes="\n".join(includes),
            members=" ".join(members),
            count=len(members),
            buses=len(buses),
            size=1 << (2 * len(members)).bit_length(),
            by_pgn=int(by_pgn),
            fill="\n".join(fill),
        )
    )
    library = folder / "generated.so"
    subprocess.run(
        ["gcc", "-O3", "-w", "-shared", "-fPIC", "-o", str(library), str(folder / "main.c"), *sources], check=True
    )
    loaded = ctypes.CDLL(str(library))
    loaded.decode.restype = ctypes.c_size_t
    loaded.decode.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    loaded.prepare()
    return loaded
