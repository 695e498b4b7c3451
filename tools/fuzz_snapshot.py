"""Load mutated snapshot files by the thousand: each is refused by a SnapshotError, or is a good file.

    python tools/fuzz_snapshot.py --cases 100000

Half the mutations are damage, which hashes find: such a file must never load, or be the same.
The others are forged, with right hashes, so that the rules behind the hashes are met. Where one of these
loads, it must be a good file: the reader of the tests, written from docs/snapshot-format.md alone, has to
read the same pages from it, and the manifest, written again, has to say the same. A case has 10 seconds,
and the process 1 GiB. A case that fails is printed with the seed that makes it again; the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import msgspec  # noqa: E402
from snapshot_forge import Parts, packed_header  # noqa: E402
from snapshot_reader import read  # noqa: E402

from vmmsim.errors import SnapshotError  # noqa: E402
from vmmsim.snapshot.codec import encode  # noqa: E402
from vmmsim.snapshot.container import load, save  # noqa: E402
from vmmsim.snapshot.encode import decode_manifest  # noqa: E402
from vmmsim.snapshot.pack import pack, unpack  # noqa: E402
from vmmsim.snapshot.pages import MemoryImage  # noqa: E402
from vmmsim.snapshot.values import Snapshot  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
WHOLE = (GOLDEN / "v1.vsnap").read_bytes()
CHILD = (GOLDEN / "v1-child.vsnap").read_bytes()
NUMBERS = [
    0,
    1,
    2,
    3,
    63,
    255,
    256,
    4095,
    4096,
    8192,
    1 << 16,
    1 << 31,
    1 << 32,
    1 << 47,
    1 << 48,
    1 << 60,
    1 << 63,
]
NUMBERS += [(1 << 64) - 1, (1 << 64) - 4096, 1 << 53, (1 << 53) - 1]
JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    255,
    4096,
    1 << 53,
    1 << 63,
    1 << 70,
    1.5,
    -0.0,
    1e300,
    "",
    "x",
    "0x0",
]
JUNK += [
    "0x1",
    "-0x1",
    "0xffffffffffffffff",
    "0x" + "f" * 32,
    "0x" + "f" * 33,
    "AAAA",
    "A===",
    "\0",
    "\x1b[2J",
    "../x",
]
JUNK += [[], [0], {}, {"a": 1}, [[]], "0" * 64, [0] * 300]
Rng = random.Random


def flip(data: bytes, rng: Rng) -> bytes:
    """Damage: bits, bytes, numbers, holes, copies, cuts."""
    out = bytearray(data)
    near = rng.random() < 0.5  # most rules are about the first bytes
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(min(512, len(out)) if near else len(out)) if out else 0
        kind = rng.randrange(8)
        if kind < 3:
            out[at : at + 1] = bytes((out[at] ^ (1 << rng.randrange(8)) if at < len(out) else 0,))
        elif kind == 3:
            out[at : at + 8] = rng.choice(NUMBERS).to_bytes(8, "little")
        elif kind == 4:
            del out[at : at + rng.choice((1, 8, 64, 4096))]
        elif kind == 5:
            other = rng.randrange(len(out) or 1)
            out[at : at + 64] = out[other : other + 64]
        elif kind == 6:
            out = out[: rng.randrange(len(out) + 1)]
        else:
            out += rng.randbytes(rng.choice((1, 64, 4096)))
    return bytes(out)


def forged_header(data: bytes, rng: Rng) -> bytes:
    parts = Parts(data)
    for _ in range(rng.choice((1, 1, 2))):
        field = rng.randrange(12)
        size = 8 if field in (0, *range(3, 9)) else 4 if field < 3 else 32
        value = rng.choice(NUMBERS) + rng.choice((0, 0, 1, -1, 4096))
        value = max(0, value) % (1 << 8 * size)
        parts.forced[field] = value.to_bytes(size, "little") if field in (0, 9, 10, 11) else value
    if rng.random() < 0.1:
        line = b"vmmsim-snapshot %d vmmsim/%d" % (rng.choice((0, 1, 2, 10**9 - 1)), rng.randrange(10))
        parts.line = line.ljust(63) + b"\n"
    return parts.build()


def forged_table(data: bytes, rng: Rng) -> bytes:
    parts = Parts(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(6)
        run = rng.choice(parts.table) if parts.table else [0, 4096, 0, 1, 0, bytes(32)]
        if kind == 0:
            run[rng.randrange(5)] = rng.choice(NUMBERS[:11])
        elif kind == 1:
            run[0] = run[0] + rng.choice((4096, -4096, 1, 0x50000)) & (1 << 64) - 1
        elif kind == 2:
            run[1] = max(0, run[1] + rng.choice((4096, -4096, 1)))
        elif kind == 3:
            parts.table.append([*run])
        elif kind == 4:
            parts.table.sort()
        else:
            run[2:6] = [0, 2, 0, bytes(32)]
    if rng.random() < 0.7:
        for run in parts.table:
            run[3] &= 0xFFFFFFFF
        parts.replace()
        for number in range(len(parts.table)):
            parts.hash_run(number) if parts.table[number][3] == 1 else None
    for run in parts.table:
        run[:5] = [run[0] & (1 << 64) - 1, run[1], run[2], run[3] & 0xFFFFFFFF, run[4] & 0xFFFFFFFF]
    return parts.build()


def forged_manifest(data: bytes, rng: Rng) -> bytes:
    parts = Parts(data)
    if rng.random() < 0.3:
        parts.manifest = flip(parts.manifest, rng)
    else:
        value = parts.json
        for _ in range(rng.choice((1, 1, 2, 3))):
            _mutate(value, rng)
        parts.json = value
    parts.replace()
    return parts.build()


def _mutate(value: Any, rng: Rng) -> None:
    """Change one thing somewhere in a JSON value."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.85:
            value = value[key]
            continue
        kind = rng.randrange(6)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(value, dict):
            value[rng.choice(("a", "uart", "pit", "", "rax", "0x10"))] = value[key]
        elif kind == 2 and isinstance(value, list):
            value.extend(value[: rng.choice((1, 2, 300))])
        elif kind == 3 and isinstance(value[key], int) and not isinstance(value[key], bool):
            value[key] += rng.choice((1, -1, 4096, 1 << 40))
        elif kind == 4:
            value[key] = value[
                rng.choice([k for k in keys if k in value] if isinstance(value, dict) else keys)
            ]
        else:
            value[key] = rng.choice(JUNK)
        return


MUTATIONS: list[tuple[str, Callable[[bytes, Rng], bytes]]] = [
    ("damage", flip),
    ("forged-header", forged_header),
    ("forged-table", forged_table),
    ("forged-manifest", forged_manifest),
]


class Fuzzer:
    """Runs cases in a directory; `counts` has what became of them."""

    def __init__(self, directory: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._file = directory / "case"
        self._out = directory / "out"
        (directory / "v1.vsnap").write_bytes(WHOLE)
        pack(GOLDEN / "v1.vsnap", self._file, codec="zlib")
        self._packed = self._file.read_bytes()
        self._good = {
            data: load(GOLDEN / name) for data, name in ((WHOLE, "v1.vsnap"), (CHILD, "v1-child.vsnap"))
        }
        padded = _padded(self._good[WHOLE], directory / "padded")
        self._good[padded] = load(directory / "padded")
        self._bases = (WHOLE, WHOLE, CHILD, padded)

    def case(self, seed: int) -> None:
        """One case. AssertionError, or whatever else was raised, for a fault of vmmsim."""
        rng = Rng(seed)
        if rng.random() < 0.15:
            self._packed_case(rng)
            return
        base = rng.choice(self._bases)
        name, mutation = rng.choice(MUTATIONS if rng.random() < 0.6 else MUTATIONS[:1])
        data = mutation(base, rng)
        self._file.write_bytes(data)
        try:
            found = load(self._file)
        except SnapshotError as error:
            _told(error)
            self.counts[f"{name}: refused"] += 1
            return
        self.counts[f"{name}: loaded"] += 1
        if name == "damage":
            assert data == base, "a damaged file was loaded"
        if data == base:
            assert found == self._good[base]
            return
        other = read(self._file)
        pages = {gpa: page for gpa, page in other.pages.items() if any(page)}
        assert pages == {gpa: bytes(page) for gpa, page in found.memory.present() if any(page)}
        manifest = Parts(data).manifest
        assert json.loads(json.dumps(encode(decode_manifest(manifest)))) == json.loads(manifest)

    def _packed_case(self, rng: Rng) -> None:
        if rng.random() < 0.3:
            changes = {rng.choice(("whole", "stream")): rng.choice(NUMBERS)}
            if rng.random() < 0.3:
                changes = {rng.choice(("codec", "version")): rng.choice(NUMBERS[:8])}
            data = packed_header(self._packed, **changes)
        else:
            data = flip(self._packed, rng)
        self._file.write_bytes(data)
        try:
            unpack(self._file, self._out)
        except SnapshotError as error:
            _told(error)
            if self._out.exists():
                raise AssertionError("a bad file was unpacked") from error
            self.counts["packed: refused"] += 1
            return
        self.counts["packed: unpacked"] += 1
        assert self._out.read_bytes() == WHOLE
        self._out.unlink()


def _padded(snapshot: Snapshot, path: Path) -> bytes:
    """A file with blanks behind its manifest and zero pages between the others, as hosts with larger pages
    map them."""
    pages = {gpa: bytes((gpa >> 12 & 0xFF,)) * 4096 for gpa in range(0x13000, 0x2B000, 4096)}
    image = MemoryImage.of_pages(snapshot.memory.regions, pages)
    save(msgspec.structs.replace(snapshot, memory=image), path)
    data = path.read_bytes()
    assert Parts(data).manifest.endswith(b" ")
    assert len(Parts(data).pages) > len(pages) * 4096
    return data


def _told(error: SnapshotError) -> None:
    if not error.hint or not error.message.isprintable():
        raise AssertionError(f"an error without a hint, or that commands a terminal: {error!r}")


def _hang(number: int, frame: Any) -> None:
    raise AssertionError("a case took more than 10 seconds")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Load mutated snapshot files.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next has the next")
    parser.add_argument("--keep", type=Path, help="keep the file of a case that fails in this directory")
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGALRM, _hang)
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    failed, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        fuzzer = Fuzzer(Path(directory))
        for seed in range(options.seed, options.seed + options.cases):
            signal.alarm(10)
            try:
                fuzzer.case(seed)
            except Exception:
                failed += 1
                print(f"case {seed} failed: python tools/fuzz_snapshot.py --cases 1 --seed {seed}")
                traceback.print_exc(limit=-4)
                if options.keep is not None:
                    (options.keep / f"case-{seed}").write_bytes((Path(directory) / "case").read_bytes())
            signal.alarm(0)
    seconds = time.monotonic() - began
    for name, count in sorted(fuzzer.counts.items()):
        print(f"{name:26} {count}")
    print(f"{options.cases} cases, {failed} failed, {seconds:.0f} seconds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
