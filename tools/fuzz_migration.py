"""Mutated migration streams: `python tools/fuzz_migration.py [--cases N] [--seed N]`.

A destination is fed with what a source says, changed: damaged on the way; or forged, with right tags,
by somebody who has the key. What a case may come to: MigrationError or SnapshotError,
and the machine is not taken; or a manifest that is one. Anything else is a failure, told with the seed
that makes it again.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from snapshot_samples import CONFIG, RAM, ROM, pattern, sample

from vmmsim.errors import MigrationError, SnapshotError
from vmmsim.snapshot.encode import decode_manifest, encode_manifest
from vmmsim.snapshot.stream import LONGEST, Destination, Frame, Manifest, Offer, Round, Source

KEY = b"a key of at least 16 bytes"
#: Seconds that no case may take.
_LONGEST_CASE = 2.0
_MANIFEST = encode_manifest(sample())
_WORDS = [
    b"null", b"true", b"-1", b"0", b"1e999", b"1152921504606846976", b'"0x' + b"f" * 40 + b'"', b"{}", b"[]",
    b'""', b'"\\ud800"', b"[[[[", b"9" * 5000,
]  # fmt: skip


class Pair:
    """Both sides, connected up to AUTH. `say` gives the destination a frame with a right tag."""

    def __init__(self) -> None:
        self.source, self.destination = Source(KEY), Destination(KEY)
        self.manifest: bytes | None = None
        self.feed(self.source.take())
        self.source.feed(self.destination.take())
        self.feed(self.source.take())
        self.source.feed(self.destination.take())

    def feed(self, data: bytes) -> None:
        for event in self.destination.feed(data):
            if isinstance(event, Offer):
                self.destination.ready("a fuzzer")
            elif isinstance(event, Round):
                self.destination.got(event.number)
            elif isinstance(event, Manifest):
                decode_manifest(event.data)
                self.manifest = event.data
                self.destination.loaded()

    def frame(self, kind: Frame, payload: bytes) -> bytes:
        self.source._send(kind, payload[: LONGEST[kind]])
        return self.source.take()


def _offer() -> bytes:
    side = Pair().source
    side.offer(CONFIG, (RAM, ROM))
    return side.take()[8:-32]


_OFFER = _offer()
_PAGES = struct.pack("<3Q", 0x8000, 0x9001, 0xF0000)
_PAGES = struct.pack("<I", 3) + _PAGES + pattern(1) + pattern(2)


def _script() -> list[tuple[Frame, bytes]]:
    return [
        (Frame.OFFER, _OFFER), (Frame.PAGES, _PAGES), (Frame.ROUND, b"\1\0\0\0"), (Frame.PAGES, _PAGES),
        (Frame.MANIFEST, _MANIFEST), (Frame.COMMIT, b""),
    ]  # fmt: skip


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Other bytes, most often only a little."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(out) + 1)
        how = chance.randrange(6)
        if how == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            del out[at : at + chance.choice((1, 2, 8, 100))]
        elif how == 2:
            out[at:at] = chance.randbytes(chance.choice((1, 2, 8, 100)))
        elif how == 3:
            out[at:at] = out[at : at + chance.randrange(1, 200)]
        elif how == 4:
            out[at : at + chance.randrange(1, 9)] = chance.choice(_WORDS)
        else:
            del out[at:]
    return bytes(out)


def damage(chance: random.Random) -> bool:
    """The bytes are changed on the way. True: they are what they were."""
    pair = Pair()
    right = [pair.frame(*frame) for frame in _script()]
    changed = list(right)
    at = chance.randrange(len(right))
    changed[at] = mutate(right[at], chance)
    if chance.randrange(4) == 0:
        chance.shuffle(changed)
    same = b"".join(changed).startswith(b"".join(right))  # behind COMMIT nothing counts
    _give(pair, changed, same)
    return same


def forged_frames(chance: random.Random) -> bool:
    """Any frames in any order, with right tags."""
    pair = Pair()
    script = _script()
    kind = chance.choice(list(Frame))
    payload = chance.choice((chance.randbytes(chance.randrange(40)), chance.choice(script)[1]))
    script.insert(chance.randrange(len(script)), (kind, payload))
    if chance.randrange(2):
        del script[chance.randrange(len(script))]
    _give(pair, [pair.frame(*frame) for frame in script], None)
    return False


def forged_payloads(chance: random.Random) -> bool:
    """One payload is another, with a right tag."""
    pair = Pair()
    script = _script()
    at = chance.choice((0, 0, 1, 4, 4, 4))
    script[at] = (script[at][0], mutate(script[at][1], chance))
    _give(pair, [pair.frame(*frame) for frame in script], None)
    return False


def _give(pair: Pair, frames: list[bytes], taken: bool | None) -> None:
    try:
        for frame in frames:
            pair.feed(frame)
    finally:
        owner = pair.destination.owner
        assert owner in ("here", "there"), owner
        assert owner == "there" or pair.manifest is not None, "taken without a manifest"
        assert taken is None or (owner == "here") == taken, "a damaged stream was taken"


KINDS: dict[str, Callable[[random.Random], bool]] = {
    "damage": damage,
    "forged-frames": forged_frames,
    "forged-payloads": forged_payloads,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results: Counter[tuple[str, str]] = Counter()
    failed = 0
    for number in range(arguments.cases):
        seed = arguments.seed + number
        chance = random.Random(seed)
        kind = chance.choice(list(KINDS))
        began = time.perf_counter()
        try:
            KINDS[kind](chance)
            result = "accepted"
        except (MigrationError, SnapshotError):
            result = "refused"
        except Exception as error:
            failed += 1
            result = "failed"
            print(f"seed {seed} ({kind}): {type(error).__name__}: {error}")
        if time.perf_counter() - began > _LONGEST_CASE:
            failed += 1
            print(f"seed {seed} ({kind}): took {time.perf_counter() - began:.1f} s")
        results[kind, result] += 1
    for (kind, result), count in sorted(results.items()):
        print(f"{kind}: {result} {count}")
    print(f"{arguments.cases} cases, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
