"""Files that must not load: damaged, forged, of another version, without their parent.

Always a SnapshotError, never another exception, a hang, a big allocation or a wrong load.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_forge import LINE, Parts, packed_header
from snapshot_samples import GOLDEN, PAGE, child, pattern, sample

from vmmsim.config import MachineConfig
from vmmsim.cpu.state import FpuState
from vmmsim.devices.uart16550 import UartState
from vmmsim.errors import SnapshotError
from vmmsim.snapshot import codec, container, encode
from vmmsim.snapshot.container import load, save, verify
from vmmsim.snapshot.pack import pack, unpack
from vmmsim.snapshot.pages import MemoryImage
from vmmsim.testing.slow import time_limit

WHOLE = (GOLDEN / "v1.vsnap").read_bytes()
CHILD = (GOLDEN / "v1-child.vsnap").read_bytes()
MANIFEST_END = 256 + struct.unpack_from("<Q", WHOLE, 80)[0]
TABLE_AT, RUNS, DATA_AT = struct.unpack_from("<3Q", WHOLE, 88)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bad.vsnap"


def refused(path: Path, data: bytes, match: str | None = None) -> SnapshotError:
    """That both ways to read refuse `data`; nothing big is allocated meanwhile."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotError, match=match) as found:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(SnapshotError):
        checked(path)
    assert found.value.exit_code == 123
    assert found.value.hint
    return found.value


def checked(path: Path) -> None:
    """What `vmmsim snapshot verify` does."""
    verify(path)
    load(path, verify=False)


def forge(
    path: Path, change: Callable[[Parts], Any], match: str | None = None, base: bytes = WHOLE
) -> SnapshotError:
    parts = Parts(base)
    change(parts)
    return refused(path, parts.build(), match)


def manifest(path: Path, change: Callable[[dict[str, Any]], Any], match: str | None = None) -> SnapshotError:
    parts = Parts(WHOLE)
    value = parts.json
    change(value)
    parts.json = value
    parts.replace()
    return refused(path, parts.build(), match)


def test_the_forge_makes_good_files(path: Path) -> None:
    path.write_bytes(Parts(WHOLE).build())
    assert load(path) == sample()
    parts = Parts(WHOLE)
    parts.json = parts.json  # compact: it has another size
    parts.replace()
    path.write_bytes(parts.build())
    assert load(path) == sample()


# Damage.


@pytest.mark.parametrize(
    "size",
    [0, 1, 63, 64, 65, 224, 255, 256, 257, MANIFEST_END - 1, MANIFEST_END, TABLE_AT - 1, TABLE_AT,
     TABLE_AT + 63, TABLE_AT + 64 * RUNS, DATA_AT - 1, DATA_AT, DATA_AT + 1, DATA_AT + PAGE,
     len(WHOLE) - PAGE, len(WHOLE) - 1],
)  # fmt: skip
def test_truncated_at_every_boundary(path: Path, size: int) -> None:
    refused(path, WHOLE[:size])


@given(size=st.integers(0, len(WHOLE) - 1))
@settings(max_examples=200)
def test_truncated_anywhere(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    refused(tmp_path_factory.mktemp("cut") / "a", WHOLE[:size])


@given(extra=st.binary(min_size=1, max_size=5000))
@settings(max_examples=20)
def test_bytes_behind_the_end(extra: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    refused(tmp_path_factory.mktemp("long") / "a", WHOLE + extra)


@pytest.mark.timeout(300)
def test_each_byte_of_the_file_flipped(path: Path) -> None:
    """Header, manifest, table and the zeros between them byte by byte; every 97th byte of the pages."""
    data = bytearray(WHOLE)
    path.write_bytes(data)
    with open(path, "r+b", buffering=0) as file:
        for at in (*range(DATA_AT), *range(DATA_AT, len(data), 97), len(data) - 1):
            file.seek(at)
            file.write(bytes((data[at] ^ (1 << at % 8),)))
            with pytest.raises(SnapshotError):
                load(path)
            file.seek(at)
            file.write(data[at : at + 1])
    assert load(path) == sample()


def test_a_manifest_of_another_hash_and_pages_of_another_hash(path: Path) -> None:
    data = bytearray(WHOLE)
    data[MANIFEST_END - 2] ^= 1
    assert "manifest does not have its hash" in refused(path, bytes(data)).message
    data = bytearray(WHOLE)
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match="pages at 0xff000 do not have their hash"):
        load(path)
    with pytest.raises(SnapshotError, match="pages at 0xff000 do not have their hash"):
        verify(path)


# Sizes.


@pytest.mark.parametrize("field", range(3, 9))
@pytest.mark.parametrize(
    "value", [0, 1, 255, 1 << 24, 1 << 32, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
)
def test_sizes_and_offsets_that_cannot_be(path: Path, field: int, value: int) -> None:
    """In each of the header's six numbers, with the right hash; 2**60 bytes of manifest too."""
    forge(path, lambda parts: parts.forced.update({field: value}))


def test_a_file_that_is_as_big_as_it_says_but_empty(path: Path) -> None:
    """Sparse: 16 MiB of manifest cost nothing to send."""
    with open(path, "wb") as file:
        file.write(Parts(WHOLE).build()[:256])
        file.truncate(1 << 40)
    with pytest.raises(SnapshotError):
        load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, 1), (0, 1 << 48), (0, (1 << 64) - PAGE), (0, 0xA0000), (0, 0x9F000), (1, 0), (1, 1),
     (1, 1 << 60), (1, 1 << 63), (1, (1 << 64) - PAGE), (2, 0), (2, 1 << 60), (2, (1 << 64) - PAGE),
     (3, 0), (3, 2), (3, 3), (4, 1), (5, bytes(32))],
    ids=lambda value: hex(value) if isinstance(value, int) else "hash",
)  # fmt: skip
@pytest.mark.parametrize("run", [0, 1, -1])
def test_runs_that_cannot_be(path: Path, run: int, field: int, value: Any) -> None:
    if (run, field, value) == (1, 0, 0x9F000):
        return  # it is there
    forge(path, lambda parts: parts.table[run].__setitem__(field, value))


def test_runs_out_of_order_overlapping_or_over_a_hole(path: Path) -> None:
    forge(path, lambda parts: parts.table.reverse(), "no place in memory|not one of format 1")
    forge(path, lambda parts: parts.table.__setitem__(1, parts.table[0]))

    def over_the_hole(parts: Parts) -> None:
        parts.table[1][0] = 0x9F000
        parts.table[1][1] = 2 * PAGE
        parts.table[2][:3] = [0xF1000, PAGE, parts.table[2][2] + PAGE]
        parts.table.pop()
        for number in (1, 2):
            parts.hash_run(number)
        parts.replace()

    forge(path, over_the_hole, "not in one region")


def test_more_pages_than_the_file_has_runs_for(path: Path) -> None:
    def more(parts: Parts) -> None:
        parts.pages += pattern(1)

    forge(path, more, "runs are not the file's pages")
    forge(path, lambda parts: parts.table.clear())


def test_a_zero_run_in_a_whole_file(path: Path) -> None:
    forge(path, lambda p: (p.table.append([0x9F000 + PAGE * 0x60, PAGE, 0, 2, 0, bytes(32)]), p.replace()))


# Versions and other formats.


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (
            b"vmmsim-snapshot 2 vmmsim/7.1.0",
            "format 2, written by vmmsim/7.1.0, is newer than what this vmmsim",
        ),
        (b"vmmsim-snapshot 999999999 vmmsim/9", "is newer"),
        (b"vmmsim-snapshot 0 vmmsim/0.0.1", "there is no format 0"),
        (b"vmmsim-snapshot -1 vmmsim/0.0.1", "not a snapshot"),
        (b"vmmsim-snapshot 1", "not a snapshot"),
        (b"vmmsim-snapshot-pack 1 vmmsim/0.1.0", "this is a packed snapshot"),
        (b"vmmsim-snapshots 1 vmmsim/0.1.0", "a vmmsim-snapshots"),
        (b"vmmsim-snapshot 1 vmm\x1b[2J", "not a snapshot"),
        (b"QEVM", "not a snapshot"),
        (b"\x7fELF", "not a snapshot"),
        (b"", "not a snapshot"),
    ],
)
def test_another_version_or_format_is_told_by_its_first_line(path: Path, line: bytes, match: str) -> None:
    first = line.ljust(63) + b"\n"
    refused(path, first + WHOLE[64:], match)
    refused(path, first, match)
    forge(path, lambda parts: setattr(parts, "line", first), match)


def test_a_newer_version_with_another_header_is_told_by_its_first_line(path: Path) -> None:
    data = b"vmmsim-snapshot 2 vmmsim/7.1.0".ljust(63) + b"\n" + os.urandom(3000)

    assert refused(path, data, "newer").hint == "update vmmsim"


@pytest.mark.parametrize(
    "change", [{0: b"\x89PNG\r\n\x1a\n"}, {1: 2}, {1: 0}, {2: 512}, {11: b"\1".ljust(32, b"\0")}]
)
def test_a_header_that_is_not_that_of_format_1(path: Path, change: dict[int, Any]) -> None:
    forge(path, lambda parts: parts.forced.update(change))


def test_what_is_no_file(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "nothing", tmp_path / "n\0l"):
        with pytest.raises(SnapshotError):
            load(name)
        with pytest.raises(SnapshotError):
            unpack(name, tmp_path / "out")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(SnapshotError, match="not a file"):
            load(tmp_path / "fifo")
        with pytest.raises(SnapshotError, match="not a file"):
            unpack(tmp_path / "fifo", tmp_path / "out")


# The manifest, with right hashes.


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{}", b"{", b'{"a":' * 100_000, b"[" * 1_000_000, b"\xff\xfe",
     b'{"writer": "\\ud800"}', b"1" * 9999, b'{"writer": 1e999}', json.dumps({"devices": {}}).encode()],
    ids=range(12),
)  # fmt: skip
def test_a_manifest_that_is_none(path: Path, text: bytes) -> None:
    parts = Parts(WHOLE)
    parts.manifest = text
    parts.replace()
    path.write_bytes(parts.build())
    with pytest.raises(SnapshotError):
        load(path)


def test_each_field_of_the_manifest_missing_or_of_another_type(path: Path) -> None:
    """Everywhere in it: every object's every field is taken out, and replaced by other things."""

    def walk(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value[:2])
            if isinstance(value, list)
            else ()
        )
        for key, item in items:
            yield (*at, key)
            yield from walk(item, (*at, key))

    base = Parts(WHOLE)
    good = base.json
    refusals = []
    for where in walk(good):
        for number, junk in enumerate(
            (None, {}, [], [{}], "x", -1, 1.5, True, "0x" + "f" * 40, 1 << 70, "missing")
        ):
            value = json.loads(base.manifest)
            inner = value
            for key in where[:-1]:
                inner = inner[key]
            before = inner[where[-1]]
            if junk == "missing":
                del inner[where[-1]]
            else:
                inner[where[-1]] = junk
            text = json.dumps(value).encode()
            try:
                found = encode.decode_manifest(text)
            except SnapshotError as error:
                refusals.append(error)
            else:
                # What is accepted has to be kept as it is: the other file that this is a manifest of.
                again = json.loads(msgspec.json.encode(codec.encode(found)))
                assert again == value, (where, number, before)
    assert len(refusals) > 1000
    assert all(error.hint for error in refusals)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["devices"].pop("uart"), "state of device 'uart' is missing"),
        (lambda m: m["devices"].pop("kbc.keyboard"), "state of device 'kbc.keyboard' is missing"),
        (lambda m: m["devices"].update(gpu={}), "device 'gpu', which this vmmsim does not have"),
        (lambda m: m["devices"].update({"uart.x": {}}), "device 'uart.x', which"),
        (lambda m: m["config"].update(extra_devices=[]), "which its machine lacks"),
        (lambda m: m["config"].update(model="q35"), "no machine model 'q35'"),
        (lambda m: m["config"].update(extra_devices=["gpu"]), "no device 'gpu'"),
        (lambda m: m["config"].update(memory=1 << 50), "more than vmmsim gives"),
        (lambda m: m["config"].update(colour=1), "knows no field 'colour'"),
        (lambda m: m.update(colour=1), "knows no field 'colour'"),
        (
            lambda m: m["devices"]["uart"].update(colour=1),
            "devices.uart: this vmmsim knows no field 'colour'",
        ),
        (lambda m: m["devices"]["uart"].pop("ier"), "devices.uart: the field 'ier' is missing"),
        (lambda m: m["devices"]["uart"].update(ier="0x5"), "is a string, but small"),
        (lambda m: m["devices"]["uart"].update(rx=[1, "x"]), r"devices.uart.rx\[1\]: 'x' is not an integer"),
        (lambda m: m["devices"]["pit"].update(counters=[]), "0 items, not 3"),
        (lambda m: m["devices"]["scratch"].update(data="AB"), "not base64"),
        (lambda m: m["devices"]["scratch"].update(data="AB=="), "bits behind its last byte"),
        (lambda m: m["cpus"][0]["state"].update(rax=5), "cpus.0..state.rax: 5 is not an integer"),
        (lambda m: m["cpus"][0]["state"].update(rax="0X5"), "is not an integer"),
        (lambda m: m["cpus"][0]["state"].update(rax="0x05"), "is not an integer"),
        (lambda m: m["cpus"][0]["state"].update(rax="0x" + "1" * 17), "rax: .* does not fit"),
        (lambda m: m["cpus"][0]["state"].update(cr0="0x80000010"), "PG without PE"),
        (lambda m: m["cpus"][0]["state"]["msrs"].pop("0x174"), "MSR 0x174 is missing"),
        (lambda m: m["cpus"][0]["state"]["msrs"].update({"0x10": "0x1"}), "not part of a CpuState"),
        (lambda m: m["cpus"][0]["state"]["fpu"]["st"].pop(), "give a list of 8|wrong length"),
        (lambda m: m["cpus"][0].update(run_state="halted"), "run_state is halted"),
        (lambda m: m["cpus"][0].update(run_state="asleep"), "none of running, halted, wait_sipi"),
        (lambda m: m.update(cpus=[]), "without a CPU"),
        (lambda m: m.update(cpus=m["cpus"] * 256), "256 CPUs"),
        (lambda m: m["clock"].update(kind="moon"), "none of host, insns, exits"),
        (lambda m: m["clock"].update(now_ns="0xffffffffffffffff"), "clock: now_ns=18446744073709551615"),
        (lambda m: m["random_state"].update(words="AAAA"), "Mersenne"),
        (lambda m: m["regions"][0].update(size=1 << 47), "overlaps|more memory"),
        (lambda m: m["regions"][0].update(size=0x9F000), "not in one region"),
        (lambda m: m["regions"].reverse(), "overlaps"),
        (lambda m: m.update(regions=[]), "not in one region"),
        (lambda m: m.update(regions=m["regions"] * 5000), "more memory than a machine"),
        (lambda m: m.update(parent="00"), "is no id"),
        (lambda m: m.update(parent_name="x"), "with a name and without an id"),
        (lambda m: m.update(parent="0" * 64, parent_name="../x"), "is no file name"),
        (lambda m: m.update(parent="0" * 64, parent_name=".."), "is no file name"),
        (lambda m: m.update(parent="0" * 64, parent_name="C:x"), "is no file name"),
        (lambda m: m.update(parent="0" * 64, parent_name="a\0b"), "is no file name"),
    ],
)
def test_a_manifest_that_is_wrong_in_one_thing(path: Path, change: Any, match: str) -> None:
    manifest(path, change, match)


def test_a_text_of_a_file_cannot_command_the_terminal(path: Path) -> None:
    error = manifest(path, lambda m: m["devices"]["uart"].update({"\x1b[2J": 1}))

    assert error.message.isprintable()


# What came later.


def test_a_field_that_came_later_takes_its_default_if_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = codec.encode(UartState(ier=5))
    del raw["divisor"]
    with pytest.raises(SnapshotError, match="'divisor' is missing"):
        codec.decode(raw, UartState)
    monkeypatch.setitem(codec.LATER_FIELDS, UartState, frozenset({"divisor"}))
    codec._decoder.cache_clear()
    try:
        assert codec.decode(raw, UartState) == UartState(ier=5)
    finally:
        monkeypatch.undo()
        codec._decoder.cache_clear()


def test_a_device_that_came_later_is_left_out_of_the_machine_if_it_is_listed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(WHOLE)
    value = parts.json
    del value["devices"]["port92"]
    parts.json = value
    parts.replace()
    path.write_bytes(parts.build())
    with pytest.raises(SnapshotError, match="'port92' is missing"):
        load(path)
    monkeypatch.setattr(encode, "LATER_DEVICES", frozenset({"port92", "pit"}))

    found = load(path)

    assert found.config.without == ("port92",)
    assert load(GOLDEN / "v1.vsnap") == sample()


# Parents.


def family(directory: Path) -> tuple[Path, Path]:
    (directory / "v1.vsnap").write_bytes(WHOLE)
    (directory / "v1-child.vsnap").write_bytes(CHILD)
    return directory / "v1.vsnap", directory / "v1-child.vsnap"


def test_a_missing_parent(tmp_path: Path) -> None:
    parent, kid = family(tmp_path)
    parent.unlink()

    with pytest.raises(SnapshotError, match=r"parent 965acac11b5213a6 is not here") as found:
        load(kid)
    assert "--parent" in found.value.hint


def test_a_wrong_parent_of_the_right_name(tmp_path: Path) -> None:
    parent, kid = family(tmp_path)
    save(msgspec.structs.replace(sample(), generation=4), parent)

    with pytest.raises(SnapshotError, match=r"v1\.vsnap' is another snapshot"):
        load(kid)
    with pytest.raises(SnapshotError, match="is another snapshot"):
        load(kid, parents=[parent])


def test_a_damaged_parent(tmp_path: Path) -> None:
    parent, kid = family(tmp_path)
    for at in (70, 300, TABLE_AT, len(WHOLE) - 1):
        data = bytearray(WHOLE)
        data[at] ^= 1
        parent.write_bytes(data)
        with pytest.raises(SnapshotError):
            load(kid)
    parent.write_bytes(WHOLE)
    assert load(kid) == child(load(parent))


def test_a_parent_of_another_shape(tmp_path: Path) -> None:
    """It has the id that the child names, so only the regions tell."""
    parent, kid = family(tmp_path)
    config = MachineConfig(
        memory=1 << 21, model="pc", extra_devices=sample().config.extra_devices, clock="exits"
    )
    regions = [msgspec.structs.replace(sample().memory.regions[0], size=0x90000)]
    id = save(msgspec.structs.replace(sample(), config=config, memory=MemoryImage(regions)), parent)
    parts = Parts(CHILD)
    value = parts.json
    value["parent"] = id
    parts.json = value
    parts.replace()
    kid.write_bytes(parts.build())

    with pytest.raises(SnapshotError, match="other memory regions"):
        load(kid)


def _forged_id(file: container.SnapshotFile) -> str:
    return file.link.parent or "0" * 64 if hasattr(file, "link") else file.header.id


def test_a_cycle_of_parents_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can name a hash that covers its own name; so the ids are forged here."""
    parent, kid = family(tmp_path)
    monkeypatch.setattr(container, "_parent", lambda child, wanted: container.open_file(kid))
    monkeypatch.setattr(container.SnapshotFile, "id", property(_forged_id))

    with pytest.raises(SnapshotError, match="its own ancestor"):
        load(kid)
    assert parent.exists()


def test_a_chain_without_end_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_MOST_PARENTS", 3)
    snapshot = sample()
    save(snapshot, tmp_path / "0")
    for number in range(1, 5):
        parent = load(tmp_path / f"{number - 1}")
        save(msgspec.structs.replace(snapshot, generation=number), tmp_path / f"{number}", parent=parent)

    with pytest.raises(SnapshotError, match="more than 3 parents"):
        load(tmp_path / "4")


# Packed files.


@pytest.fixture
def packed(tmp_path: Path) -> bytes:
    pack(GOLDEN / "v1.vsnap", tmp_path / "a.pack", codec="zlib")
    return (tmp_path / "a.pack").read_bytes()


def not_unpacked(tmp_path: Path, data: bytes, match: str | None = None) -> None:
    (tmp_path / "bad.pack").write_bytes(data)
    with pytest.raises(SnapshotError, match=match):
        unpack(tmp_path / "bad.pack", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pack", "bad.pack"]


def test_packed_files_come_back_byte_by_byte(tmp_path: Path, packed: bytes) -> None:
    assert len(packed) < len(WHOLE) / 2
    assert unpack(tmp_path / "a.pack", tmp_path / "out") == load(GOLDEN / "v1.vsnap").id
    assert (tmp_path / "out").read_bytes() == WHOLE


def test_a_packed_incremental_file_needs_no_parent_to_be_unpacked(tmp_path: Path) -> None:
    pack(GOLDEN / "v1-child.vsnap", tmp_path / "a")
    unpack(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == CHILD


def test_zstd_where_it_is_there(tmp_path: Path) -> None:
    if "compression.zstd" not in sys.modules:
        pytest.importorskip(
            "zstandard", reason="neither Python 3.14's compression.zstd nor zstandard is here"
        )
    pack(GOLDEN / "v1.vsnap", tmp_path / "a", codec="zstd")
    data = (tmp_path / "a").read_bytes()
    unpack(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == WHOLE
    for bad in (
        data[:-1],
        data + b"\0",
        data[:500] + b"\xff" + data[501:],
        packed_header(data + b"x", stream=len(data) - 415),
    ):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(SnapshotError):
            unpack(tmp_path / "bad", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_packed_files_truncated_or_flipped(tmp_path: Path, packed: bytes) -> None:
    for size in (0, 63, 64, 100, 383, 384, 415, 416, 417, len(packed) // 2, len(packed) - 4, len(packed) - 1):
        not_unpacked(tmp_path, packed[:size])
    not_unpacked(tmp_path, packed + b"\0")
    for at in (*range(416), *range(416, len(packed), 53)):
        data = bytearray(packed)
        data[at] ^= 1 << at % 8
        not_unpacked(tmp_path, bytes(data))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"whole": 1 << 60}, "its header says"),
        ({"whole": 0}, "its header says"),
        ({"stream": 1 << 60}, "the header says"),
        ({"codec": 9}, "codec 9, which nobody knows"),
        ({"version": 2}, "not that of format 1"),
        ({"magic": b"12345678"}, "not that of format 1"),
    ],
)
def test_packed_headers_that_cannot_be(tmp_path: Path, packed: bytes, changes: Any, match: str) -> None:
    not_unpacked(tmp_path, packed_header(packed, **changes), match)


def test_a_stream_that_never_ends_is_cut_at_the_size_of_its_file(tmp_path: Path, packed: bytes) -> None:
    import zlib

    bomb = packed[:416] + zlib.compress(bytes(256 << 20), 9)
    began = time.monotonic()
    not_unpacked(tmp_path, packed_header(bomb, stream=len(bomb) - 416), "longer than its file")
    other = packed[:416] + zlib.compress(bytes(len(WHOLE)), 9)
    not_unpacked(tmp_path, packed_header(other, stream=len(other) - 416), "not that of its header")
    inner = zlib.compress(WHOLE + bytes(256 << 20), 9)
    bomb = packed[:416] + inner
    not_unpacked(tmp_path, packed_header(bomb, stream=len(inner)), "longer than its file")
    assert time.monotonic() - began < time_limit(20)
    inner = zlib.compress(WHOLE)
    not_unpacked(
        tmp_path, packed_header(packed[:416] + inner + b"x", stream=len(inner) + 1), "ends too early"
    )
    inner = zlib.compress(WHOLE[:-1] + b"\xff")
    not_unpacked(tmp_path, packed_header(packed[:416] + inner, stream=len(inner)), "do not have their hash")


def test_a_plain_file_is_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="this is a plain snapshot"):
        unpack(GOLDEN / "v1.vsnap", tmp_path / "x")
    with pytest.raises(SnapshotError):
        unpack(tmp_path / "nothing", tmp_path / "x")
    assert len(LINE) == 64
    assert FpuState in codec.HEX_TYPES
