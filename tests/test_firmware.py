"""Firmware: the host bridge and fw_cfg that it asks, `--bios`, and SeaBIOS to its end."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from cli_tools import vmmsim
from hypothesis import given
from hypothesis import strategies as st

from vmmsim import Machine, MachineConfig
from vmmsim.bus import Bus
from vmmsim.devices.fw_cfg import FwCfg
from vmmsim.devices.i440fx import I440fx, I440fxState
from vmmsim.devices.reset_control import ResetControl
from vmmsim.errors import UsageError
from vmmsim.exits import GuestExit, SystemEvent
from vmmsim.loaders import load_bytes, load_rom
from vmmsim.testing import run_device_conformance
from vmmsim.testing.slow import time_limit

SEABIOS = Path("/usr/share/seabios")
GIB = 1 << 30

# the host bridge


class Pci:
    """The bridge on a bus of its own, as a guest uses configuration mechanism #1."""

    def __init__(self, *, reset_control: bool = True) -> None:
        self.resets: list[bool] = []
        control = ResetControl(self.resets.append) if reset_control else None
        self.bus = Bus("port", 0x10000)
        self.device = I440fx(lambda: control)
        self.bus.attach(0xCF8, I440fx.length, self.device)

    def select(self, register: int, device: int = 0, function: int = 0, bus: int = 0) -> None:
        self.bus.write(0xCF8, 4, 1 << 31 | bus << 16 | device << 11 | function << 8 | register & 0xFC)

    def read(self, register: int, size: int, **where: int) -> int:
        self.select(register, **where)
        return self.bus.read(0xCFC + (register & 3), size)

    def write(self, register: int, size: int, value: int) -> None:
        self.select(register)
        self.bus.write(0xCFC + (register & 3), size, value)


def test_the_bridge_conforms() -> None:
    def make(state: Any = None) -> I440fx:
        return I440fx(state=state)

    assert {result.outcome for result in run_device_conformance(make, length=I440fx.length)} == {"passed"}


def test_the_bridge_says_what_it_is() -> None:
    pci = Pci()
    # 82441FX data sheet, 3.2: VID, DID, class; QEMU's docs/specs/pci-ids: the subsystem.
    assert (pci.read(0x00, 2), pci.read(0x02, 2)) == (0x8086, 0x1237)
    assert pci.read(0x08, 4) >> 8 == 0x060000
    assert pci.read(0x0E, 1) == 0  # one function
    assert (pci.read(0x2C, 2), pci.read(0x2E, 2)) == (0x1AF4, 0x1100)


@pytest.mark.parametrize("where", [{"device": 1}, {"function": 1}, {"bus": 1}, {"device": 31}])
def test_there_is_no_other_pci_device(where: dict[str, int]) -> None:
    assert Pci().read(0, 4, **where) == 0xFFFFFFFF


def test_without_the_enable_bit_nothing_answers() -> None:
    pci = Pci()
    pci.bus.write(0xCF8, 4, 0)
    assert pci.bus.read(0xCFC, 4) == 0xFFFFFFFF


def test_the_address_register_keeps_what_it_has_and_takes_32_bits_only() -> None:
    pci = Pci()
    pci.bus.write(0xCF8, 4, 0xFFFFFFFF)
    assert pci.bus.read(0xCF8, 4) == 0x80FFFFFC
    pci.bus.write(0xCFB, 1, 1)  # what Linux does before it looks for the mechanism
    assert pci.bus.read(0xCF8, 4) == 0x80FFFFFC
    assert pci.bus.read(0xCFA, 2) == 0xFFFF


def test_pam_registers_keep_their_enable_bits() -> None:
    pci = Pci()
    pci.write(0x58, 4, 0xFFFFFFFF)
    pci.write(0x5C, 4, 0xFFFFFFFF)
    assert pci.device.state().pam.hex() == "30333333333333"
    assert [pci.read(register, 1) for register in (0x58, 0x59, 0x5A, 0x5F, 0x60)] == [0, 0x30, 0x33, 0x33, 0]
    pci.write(0x5A, 1, 0x10)
    assert pci.read(0x59, 2) == 0x1030


@given(st.lists(st.tuples(st.integers(0, 255), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))))
def test_nothing_else_in_the_space_can_be_written(script: list[tuple[int, int, int]]) -> None:
    pci, fresh = Pci(), Pci()
    for register, size, value in script:
        pci.write(register, size, value & (1 << 8 * size) - 1)
    for register in range(256):
        if not 0x59 <= register <= 0x5F:
            assert pci.read(register, 1) == fresh.read(register, 1)


def test_a_byte_at_cf9_is_the_reset_control_register_and_no_other_access_is() -> None:
    pci = Pci()
    pci.select(0, device=6)  # its byte 1 is 30h; a naive bus would write that to CF9h
    pci.bus.write(0xCF8, 4, 0x80000600)
    pci.bus.write(0xCF8, 2, 0x0600)
    assert pci.resets == []
    pci.bus.write(0xCF9, 1, 0x02)
    assert pci.bus.read(0xCF9, 1) == 0x02
    pci.bus.write(0xCF9, 1, 0x06)
    assert pci.resets == [True]

    alone = Pci(reset_control=False)
    alone.bus.write(0xCF9, 1, 6)
    assert alone.bus.read(0xCF9, 1) == 0xFF


@pytest.mark.parametrize(
    "state", [{"address": 1}, {"address": 1 << 32}, {"pam": bytes(6)}, {"pam": b"\x01" + bytes(6)}]
)
def test_a_state_that_the_bridge_cannot_be_in_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="i440fx"):
        I440fx.from_state(I440fxState(**state))


@pytest.mark.parametrize("without", [(), ("host-bridge",)])
def test_port_cf9_resets_a_pc_with_and_without_the_bridge(
    backend_name: str, without: tuple[str, ...]
) -> None:
    with Machine(backend=backend_name, model="pc", without=without) as machine:
        # mov dx, 0xcf9; mov al, 6; out dx, al
        machine.load(load_bytes(bytes.fromhex("baf90cb006eef4"), mode="real"))
        assert machine.run() == SystemEvent("reset")


# what fw_cfg says


def items(**fields: Any) -> dict[str, bytes]:
    """The files of a machine's fw_cfg, read as a guest reads them: by its ports."""
    with Machine(backend="unicorn", model="pc", **fields) as machine:

        def take(key: int, size: int) -> bytes:
            machine.ports.write(0x510, 2, key)
            return bytes(machine.ports.read(0x511, 1) for _ in range(size))

        assert isinstance(machine.devices["fw-cfg"], FwCfg)
        assert take(0, 4) == b"QEMU"
        assert take(1, 4) == struct.pack("<I", 3)  # with DMA
        found = {"memory": take(3, 8), "cpus": take(5, 2)}
        (count,) = struct.unpack(">I", take(0x19, 4))
        directory = take(0x19, 4 + 64 * count)[4:]
        for size, key, name in struct.iter_unpack(">IHxx56s", directory):
            found[name.rstrip(b"\0").decode()] = take(key, size)
    return found


def test_fw_cfg_says_what_seabios_asks() -> None:
    found = items(memory=5 * GIB)

    assert struct.unpack("<Q", found["memory"]) == (5 * GIB,)
    assert struct.unpack("<H", found["cpus"]) == struct.unpack("<H", found["etc/max-cpus"]) == (1,)
    assert list(struct.iter_unpack("<QQI", found["etc/e820"])) == [(0, 3 * GIB, 1), (4 * GIB, 2 * GIB, 1)]
    assert found["etc/sercon-port"] == b"\xf8\x03"
    assert found["etc/boot-fail-wait"] == b"\xff\xff\xff\xff"
    assert {"etc/acpi/rsdp", "etc/acpi/tables", "etc/table-loader"} <= set(found)


def test_fw_cfg_names_nothing_that_is_left_out() -> None:
    found = items(without=("uart", "acpi-pm"))
    assert not {"etc/sercon-port", "etc/table-loader", "etc/acpi/tables"} & set(found)


#: mov dx, 0x518; mov eax, bswap(0x2000); out dx, eax: a DMA transfer as 0x2000 says it.
START_DMA = "ba180566b80000200066ef"


def dma_machine(backend: str, target: int, code: str) -> Machine:
    """A machine whose guest has fw_cfg write "QEMU", the signature, to `target` and goes on with `code`."""
    machine = Machine(backend=backend, model="pc")
    # FWCfgDmaAccess: select item 0, read.
    machine.memory.write(0x2000, struct.pack(">IIQ", 0 << 16 | 8 | 2, 4, target))
    machine.load(load_bytes(bytes.fromhex(START_DMA + code), mode="real"))
    return machine


@pytest.mark.parametrize("how", ["run", "exits"])
def test_a_guest_reads_fw_cfg_by_dma_into_its_memory(backend_name: str, how: str) -> None:
    # mov al, [0x3000]; out 0xf4, al
    with dma_machine(backend_name, 0x3000, "a00030e6f4") as machine:
        end = machine.run() if how == "run" else list(machine.exits())[-1]
        assert end == GuestExit(ord("Q"))
        assert machine.memory.read(0x2000, 4) == bytes(4)


@pytest.mark.parametrize("how", ["run", "exits"])
def test_code_that_dma_brings_right_behind_the_access_is_executed(backend_name: str, how: str) -> None:
    # Four HLT, over which "QEMU" comes: push cx; inc bp; dec bp; push bp. Then mov al, 7; out 0xf4, al.
    behind = 0x7C00 + len(bytes.fromhex(START_DMA))
    with dma_machine(backend_name, behind, "f4f4f4f4b007e6f4") as machine:
        assert (machine.run() if how == "run" else list(machine.exits())[-1]) == GuestExit(7)


# the test device


def test_the_test_device_is_added_with_its_parts(backend_name: str) -> None:
    names = ("testdev", "testdev-irqs", "testdev-mem")
    with Machine(backend=backend_name, model="pc", extra_devices=names) as machine:
        # mov dx, 0xe0; mov al, 0x5a; out dx, al; mov dx, 0x2004; mov al, 1; out dx, al
        # mov bl, [0xff000010]; mov byte [0xff000010], 9; mov al, [0xff000010]; out 0xf4, al
        code = (
            "66bae000" "b05a" "ee" "66ba0420" "b001" "ee"
            "8a1d100000ff" "c605100000ff09" "a0100000ff" "e6f4"
        )  # fmt: skip
        machine.load(load_bytes(bytes.fromhex(code), mode="p32"))
        assert machine.run() == GuestExit(9)
        assert machine.ports.read(0xE0, 4) == 0x5A
        assert machine.devices["testdev-irqs"].state().levels == 1 << 4  # type: ignore[attr-defined]
        machine.ports.write(0x20, 1, 0x0A)  # OCW3: read the requests
        assert machine.ports.read(0x20, 1) & 1 << 4


# ROM images


def rom(code: bytes, size: int = 64 << 10) -> bytes:
    """A ROM that begins with `code` at F000:0000 and jumps there from the reset vector."""
    return code.ljust(size - 16, b"\xf4") + bytes.fromhex("ea000000f0").ljust(16, b"\0")


def test_a_rom_starts_at_the_reset_vector_and_writes_its_shadow(backend_name: str) -> None:
    # mov byte cs:[0x100], 7 (RAM); mov al, cs:[0x100]; out 0xf4, al
    code = bytes.fromhex("2ec6060001072ea00001e6f4")
    with Machine(backend=backend_name, model="pc") as machine:
        machine.load(load_rom(rom(code), name="rom"))
        assert machine.run() == GuestExit(7)
        assert machine.memory[0xF0100] == 7
        assert machine.memory[0xFFFF0100] == 0xF4


def test_a_rom_goes_where_the_hole_below_4_gib_is(backend_name: str) -> None:
    with Machine(backend=backend_name, model="pc", memory=6 * GIB) as machine:
        machine.load(load_rom(rom(bytes.fromhex("b003e6f4")), name="rom"))
        assert machine.run() == GuestExit(3)


def test_bios_runs_a_rom_on_a_pc(backend_name: str, tmp_path: Path) -> None:
    image = tmp_path / "rom.bin"
    # mov dx, 0x3f8; mov al, 'F'; out dx, al; mov al, 5; out 0xf4, al
    image.write_bytes(rom(bytes.fromhex("baf803b046eeb005e6f4")))
    done = vmmsim("run", "--bios", image, "-q", "-b", backend_name)
    assert (done.returncode, done.stdout, done.stderr) == (5, b"F", b"")
    assert vmmsim("exits", "--bios", image, "-q", "-b", backend_name).returncode == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bios", "{rom}", "--kernel", "{rom}"], "--kernel with --bios"),
        (["--bios", "{rom}", "--append", "x"], "--bios with --append"),
        (["--bios", "{rom}", "--initrd", "x"], "--bios with --initrd"),
        (["--bios", "{rom}", "--mode", "real"], "--bios with --mode"),
        (["--bios", "{rom}", "--entry", "0"], "--bios with --entry"),
        (["--bios", "{rom}", "loop"], "--bios with a guest"),
        (["--bios", "{cut}"], "no multiple of 4 KiB"),
        (["--bios", "{rom}", "-m", "512K"], "does not fit"),
    ],
)
def test_bios_says_what_is_wrong_with_it(arguments: list[str], words: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "rom.bin", tmp_path / "cut.bin"
    whole.write_bytes(rom(b""))
    cut.write_bytes(rom(b"")[:-1])
    names = {"rom": str(whole), "cut": str(cut)}
    done = vmmsim("run", "-b", "unicorn", "-q", *(word.format(**names) for word in arguments))

    assert done.returncode == 125
    assert words in done.stderr.decode()
    assert "vmmsim: hint: " in done.stderr.decode()
    assert vmmsim("run", "--bios", tmp_path / "none").returncode == 127


# SeaBIOS


@pytest.mark.unicorn
@pytest.mark.timeout(60)
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("name", ["bios.bin", "bios-256k.bin"])
def test_seabios_finds_no_bootable_device(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SEABIOS / name
    if not file.is_file():
        pytest.skip(f"no {file} (Debian: seabios)")
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    with Machine(MachineConfig(model="pc"), backend="unicorn") as machine:
        machine.load(load_rom(file.read_bytes(), name=name))
        machine.serial.expect(rb"SeaBIOS \(version ", timeout=time_limit(30))
        machine.serial.expect_exact(b"No bootable device.", timeout=time_limit(30))


@pytest.mark.unicorn
@pytest.mark.timeout(60)
def test_seabios_log_tells_that_it_has_our_tables() -> None:
    file = SEABIOS / "bios-256k.bin"
    if not file.is_file():
        pytest.skip(f"no {file} (Debian: seabios)")
    config = MachineConfig(model="pc", memory=128 << 20, without=("uart",), extra_devices=("firmware-log",))
    with Machine(config, backend="unicorn") as machine:
        machine.load(load_rom(file.read_bytes(), name="bios"))
        for line in (
            b"Running on QEMU (i440fx)",
            b"QEMU fw_cfg DMA interface supported",
            b"qemu/e820: addr 0x0000000000000000 len 0x0000000008000000 [RAM]",
            b"Found 1 PCI devices",
            b"(via xsdt)",
            b"ACPI: parse DSDT at ",
            b"No bootable device.",
        ):
            machine.serial.expect_exact(line, timeout=time_limit(30))
        assert b"Unable to unlock ram" not in machine.output.data
