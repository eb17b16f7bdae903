"""GPU code of other chips, blanked in a shared library, so that the library packs small and stays what it was.

A CUDA library holds one copy of its kernels for every chip generation it was built for, in the ELF section
`.nv_fatbin`: containers, each a header and entries of one generation. On one known chip the other copies never load.
Their bytes are overwritten with zeros; every header, size and offset stays, so the file has the layout that it had.

The form is not documented by NVIDIA; it is what `cuobjdump` and open readers of it agree on:

    container   u32 magic 0xBA55ED50 · u16 version · u16 header bytes · u64 bytes of all entries
    entry       u16 kind (1: PTX, 2: machine code) · u16 version · u32 header bytes · u64 payload bytes · … · at byte 28
                u32 architecture (90 of sm_90)

Whatever does not read as that is left alone: a library is then larger, never wrong.

    python bench/fatbin.py LIBRARY.so… --keep 90
"""

from __future__ import annotations

import argparse
import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = 0xBA55ED50
PTX = 1
_ELF_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was done to one library: bytes of code by generation, and how many of them are zeros now."""

    name: str
    size: int
    blanked: int
    code: dict[str, int] = field(default_factory=dict)


def prune(path: Path, keep: tuple[int, ...]) -> Pruned:
    """Blanks the code of every generation but those to keep, in place; of a library without these nothing.

    PTX goes always: there is machine code that makes it needless.
    """
    data = bytearray(path.read_bytes())
    section = _section(data, b".nv_fatbin")
    code: Counter[str] = Counter()
    spans: list[tuple[int, int, bool]] = []
    if section is not None:
        for kind, architecture, start, size in _entries(data, *section):
            code[f"{'ptx' if kind == PTX else 'sm'} {architecture}"] += size
            spans.append((start, size, kind != PTX and architecture in keep))
    if any(kept for _, _, kept in spans):  # of a library without code for this chip the PTX is all that could run
        for start, size, kept in spans:
            if not kept:
                data[start : start + size] = bytes(size)
        path.write_bytes(data)
        blanked = sum(size for _, size, kept in spans if not kept)
    else:
        blanked = 0
    return Pruned(name=path.name, size=len(data), blanked=blanked, code=dict(sorted(code.items())))


def _section(data: bytearray, name: bytes) -> tuple[int, int] | None:
    """File offset and size of a section of a 64-bit ELF file (System V ABI, chapter 4); None where it has none."""
    if data[:6] != _ELF_MAGIC:
        return None
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        entry_size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", data, table + index * entry_size) for index in range(count)]
        strings = headers[names][4]
    except (struct.error, IndexError):  # cut short
        return None
    for label, _, _, _, offset, size in headers:
        if data[strings + label : strings + label + len(name) + 1] == name + b"\0":
            return (offset, size) if offset + size <= len(data) else None
    return None


def _entries(data: bytearray, offset: int, size: int) -> list[tuple[int, int, int, int]]:
    """(kind, architecture, payload's offset, payload's size) of every entry that reads as one."""
    found = []
    place, end = offset, offset + size
    while place + 16 <= end:
        magic, _, header, body = struct.unpack_from("<IHHQ", data, place)
        stop = place + header + body
        if magic != MAGIC or header < 16 or stop > end:
            place += 8  # containers are aligned, with padding between them
            continue
        entry = place + header
        while entry + 64 <= stop:
            kind, _, own, payload = struct.unpack_from("<HHIQ", data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + 28)
            if own < 64 or entry + own + payload > stop:
                break
            found.append((kind, architecture, entry + own, payload))
            entry += own + payload
        place = stop + -stop % 8
    return found


def main() -> None:
    """Prune the named libraries and print a line about each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("libraries", nargs="+", type=Path)
    parser.add_argument("--keep", nargs="+", type=int, default=[90], help="architectures, as in sm_90")
    options = parser.parse_args()
    for path in options.libraries:
        done = prune(path, tuple(options.keep))
        print(json.dumps({"library": done.name, "bytes": done.size, "blanked": done.blanked, "code": done.code}))


if __name__ == "__main__":
    main()
