"""The C that `cantools generate_c_source` makes, compiled with gcc -O3 and called in this process, to compare with.

It is called as its fast users call it: a table from (bus, identifier) to the unpack function, one struct a message,
over the same 24-byte frame records as ours.
"""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

MAIN = """
#include <stdint.h>
#include <stddef.h>
#include <string.h>
{includes}

typedef int (*unpack_t)(void *, const uint8_t *, size_t);
typedef struct __attribute__((packed)) {{
    int64_t time_us; uint32_t id; uint8_t bus, length, flags, reserved; uint8_t data[8];
}} frame_t;
static union {{ {members} }} out[{count}];
static struct {{ unpack_t unpack; void *to; }} table[{buses}][2048];

void prepare(void) {{
{fill}
}}

size_t decode(const frame_t *frames, size_t count) {{
    size_t known = 0;
    for (size_t i = 0; i < count; i++) {{
        const frame_t *f = &frames[i];
        if (f->bus >= {buses} || f->id >= 2048 || !table[f->bus][f->id].unpack) continue;
        known += table[f->bus][f->id].unpack(table[f->bus][f->id].to, f->data, f->length) == 0;
    }}
    return known;
}}
"""


def build(databases: dict[str, list[Path]], folder: Path) -> ctypes.CDLL:
    """Generate, compile and load. decode(records, count) returns how many frames were unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    includes, fill, members, sources = [], [], [], []
    for bus, paths in enumerate(databases.values()):
        for number, path in enumerate(paths):
            name = f"b{bus}d{number}"
            generate = [sys.executable, "-m", "cantools", "generate_c_source", "--no-strict", "--database-name", name]
            subprocess.run([*generate, str(path.resolve())], cwd=folder, check=True, capture_output=True)
            header = (folder / f"{name}.h").read_text()
            includes.append(f'#include "{name}.h"')
            sources.append(str(folder / f"{name}.c"))
            for message in re.findall(r"^int (\w+)_unpack\(", header, re.MULTILINE):
                identifier = re.search(rf"#define {message.upper()}_FRAME_ID \((0x[0-9a-f]+)u\)", header)
                if identifier is None or int(identifier[1], 16) >= 2048:
                    continue
                place = len(members)
                members.append(f"struct {message}_t m{place};")
                fill.append(f"    table[{bus}][{identifier[1]}].unpack = (unpack_t){message}_unpack;")
                fill.append(f"    table[{bus}][{identifier[1]}].to = &out[{place}];")
    (folder / "main.c").write_text(
        MAIN.format(
            includes="\n".join(includes),
            members=" ".join(members),
            count=len(members),
            buses=len(databases),
            fill="\n".join(fill),
        )
    )
    library = folder / "generated.so"
    subprocess.run(
        ["gcc", "-O3", "-w", "-shared", "-fPIC", "-o", str(library), str(folder / "main.c"), *sources], check=True
    )
    loaded = ctypes.CDLL(str(library))
    loaded.decode.restype = ctypes.c_size_t
    loaded.decode.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    loaded.prepare()
    return loaded
