"""`vmmsim snapshot`, as a person and as a program use it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from cli_tools import vmmsim
from snapshot_forge import Parts
from snapshot_samples import GOLDEN, PAGE, cpu_state, pattern, sample

from vmmsim.cpu.state import CpuState
from vmmsim.snapshot.compare import compare
from vmmsim.snapshot.container import load, save
from vmmsim.snapshot.pages import MemoryImage
from vmmsim.snapshot.values import CpuSnapshot, Snapshot

WHOLE, CHILD = GOLDEN / "v1.vsnap", GOLDEN / "v1-child.vsnap"


def test_show_tells_machine_registers_devices_and_memory() -> None:
    result = vmmsim("snapshot", "show", CHILD)

    text = result.stdout.decode()
    assert result.returncode == 0
    assert load(CHILD).id in text
    assert f"{load(WHOLE).id} (v1.vsnap)" in text
    for part in ("kvm (kvm_intel), Linux, a test", "pc, 704 KiB", "exits, at 78000 ns", "42 characters",
                 "0xf0000..0xfffff ROM bios", "running, real, CPL 0, 1234568 instructions", "rip=00007c06",
                 "leds=2", "codes=[128, 85]"):  # fmt: skip
        assert part in text


def test_show_json_has_the_manifest() -> None:
    shown = json.loads(vmmsim("snapshot", "show", CHILD, "--json").stdout)

    assert shown["id"] == load(CHILD).id
    assert (shown["stored"], shown["zeroed"]) == (2 * PAGE, PAGE)
    assert shown["manifest"]["devices"]["uart"]["rx"] == [0x69]


def test_show_needs_no_parent_and_shows_devices_that_this_build_lacks(tmp_path: Path) -> None:
    parts = Parts(CHILD.read_bytes())
    value = parts.json
    value["devices"]["gpu\x1b[2J"] = {"x": 1}
    value["provenance"]["comment"] = "\x1b]0;title\x07"
    value["clock"] = []
    parts.json = value
    parts.replace()
    (tmp_path / "a").write_bytes(parts.build())

    result = vmmsim("snapshot", "show", tmp_path / "a")

    assert result.returncode == 0, result.stderr
    assert b"gpu?[2J" in result.stdout
    assert b"\x1b" not in result.stdout
    assert vmmsim("snapshot", "verify", tmp_path / "a", "--parent", WHOLE).returncode == 123


def test_verify_lists_the_chain(tmp_path: Path) -> None:
    result = vmmsim("snapshot", "verify", CHILD, "--json")
    assert [Path(file["file"]).name for file in json.loads(result.stdout)] == ["v1-child.vsnap", "v1.vsnap"]
    assert vmmsim("snapshot", "verify", CHILD).stdout.count(b"all hashes are right") == 2

    (tmp_path / "alone").write_bytes(CHILD.read_bytes())
    result = vmmsim("snapshot", "verify", tmp_path / "alone")
    assert result.returncode == 123
    assert b"its parent 965acac11b5213a6 is not here" in result.stderr
    assert vmmsim("snapshot", "verify", tmp_path / "alone", "--parent", WHOLE).returncode == 0


@pytest.mark.parametrize(
    "verb",
    [["verify"], ["show"], ["diff", WHOLE], *([verb, "-o", "x"] for verb in ("flatten", "pack", "unpack"))],
)
def test_a_bad_file_ends_every_verb_with_123_and_a_hint(tmp_path: Path, verb: list[str | Path]) -> None:
    bad = bytearray(WHOLE.read_bytes())
    bad[200] ^= 1
    (tmp_path / "bad").write_bytes(bad)
    where = [str(tmp_path / "x") if part == "x" else part for part in verb]

    for file in (tmp_path / "bad", tmp_path / "nothing", tmp_path):
        result = vmmsim("snapshot", *where, file)
        assert result.returncode == 123, result.stderr
        assert result.stderr.startswith(b"vmmsim: error: ")
        assert b"vmmsim: hint: " in result.stderr
        assert b"Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_diff_says_what_differs_with_the_instructions_where_it_is_code() -> None:
    result = vmmsim("snapshot", "diff", WHOLE, CHILD)

    lines = result.stdout.decode().splitlines()
    assert result.returncode == 122
    assert [line.split() for line in lines[1:4]] == [
        ["rax", "0x1122334455667788", "0x41"], ["rip", "0x7c05", "0x7c06"],
        ["events.nmi_masked", "True", "False"],
    ]  # fmt: skip
    assert any(line.startswith("uart.rx ") and line.endswith("(104, 105)          (105,)") for line in lines)
    at = lines.index("memory 0x7c05, 1 bytes")
    assert [line.strip() for line in lines[at + 1 : at + 5]] == [
        "A f4", "0x7c05  f4  hlt", "B cc", "0x7c05  cc  int3",
    ]  # fmt: skip
    assert "memory 0x9000, 4096 bytes" in lines
    assert b"9 values and 3 pages of memory differ" in result.stderr


def test_diff_json_and_its_limit() -> None:
    result = vmmsim("snapshot", "diff", WHOLE, CHILD, "--json", "--limit", "1")

    found = json.loads(result.stdout)
    assert result.returncode == 122
    assert (found["same"], found["pages"], found["more"]) == (False, 3, True)
    assert found["memory"] == [
        {"gpa": 0x7C05, "length": 1, "a": "f4", "b": "cc",
         "code_a": ["0x7c05  f4  hlt"], "code_b": ["0x7c05  cc  int3"]},
    ]  # fmt: skip
    assert {"name": "clock.exits", "a": 77, "b": 78} in found["fields"]


def test_the_same_is_0_however_it_is_kept(tmp_path: Path) -> None:
    assert vmmsim("snapshot", "flatten", CHILD, "-o", tmp_path / "flat").returncode == 0

    result = vmmsim("snapshot", "diff", CHILD, tmp_path / "flat")

    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"vmmsim: no difference\n")
    assert load(tmp_path / "flat").memory.parent is None


def test_pack_and_unpack(tmp_path: Path) -> None:
    result = vmmsim("snapshot", "pack", WHOLE, "-o", tmp_path / "p", "--codec", "zlib")
    assert result.returncode == 0
    assert f"{(tmp_path / 'p').stat().st_size} bytes in".encode() in result.stderr
    assert vmmsim("snapshot", "show", tmp_path / "p").returncode == 123

    result = vmmsim("snapshot", "unpack", tmp_path / "p", "-o", tmp_path / "u")
    assert result.returncode == 0
    assert load(WHOLE).id[:16].encode() in result.stderr
    assert (tmp_path / "u").read_bytes() == WHOLE.read_bytes()


# Comparing.


def snapshot(pages: dict[int, bytes], state: CpuState) -> Snapshot:
    regions = sample().memory.regions
    cpus = (CpuSnapshot(state=state),)
    return msgspec.structs.replace(sample(), cpus=cpus, memory=MemoryImage.of_pages(regions, pages))


def test_stretches_join_over_short_gaps_and_not_over_long_ones() -> None:
    state = cpu_state()
    a, b = bytearray(pattern(1)), bytearray(pattern(1))
    for at in (0, 15, 100, 101, 2000):
        b[at] ^= 0xFF

    found = compare(snapshot({0x50000: bytes(a)}, state), snapshot({0x50000: bytes(b)}, state))

    assert [(m.gpa, m.length) for m in found.memory] == [(0x50000, 16), (0x50064, 2), (0x507D0, 1)]
    assert found.pages == 1
    assert all(not m.code_a and not m.code_b for m in found.memory)


def test_code_is_decoded_from_the_next_instruction_on() -> None:
    """The byte that differs is in the midst of the second instruction: mov ax, 0x1234."""
    state = cpu_state()
    state.rip = 0x7C00
    page = bytearray(PAGE)
    page[0xC00:0xC05] = bytes.fromhex("90 b8 34 12 f4")
    other = bytearray(page)
    other[0xC03] = 0x56

    found = compare(snapshot({0x7000: bytes(page)}, state), snapshot({0x7000: bytes(other)}, state))

    assert [(m.gpa, m.length) for m in found.memory] == [(0x7C03, 1)]
    assert found.memory[0].code_a == ("0x7c01  b8 34 12  mov ax, 0x1234",)
    assert found.memory[0].code_b == ("0x7c01  b8 34 56  mov ax, 0x5634",)


def test_another_machine_differs_in_config_and_regions(tmp_path: Path) -> None:
    whole = sample()
    bigger = msgspec.structs.replace(
        whole, config=msgspec.structs.replace(whole.config, memory=2 << 20),
        memory=MemoryImage([whole.memory.regions[0]]), cpus=whole.cpus * 2,
    )  # fmt: skip
    save(bigger, tmp_path / "a")

    found = compare(whole, load(tmp_path / "a"))

    names = [field.name for field in found.fields]
    assert names == ["cpu1", "config.memory", "memory.regions"]
    assert found.pages == 6
    assert not found.same
    assert vmmsim("snapshot", "diff", WHOLE, tmp_path / "a", "--json").returncode == 122
