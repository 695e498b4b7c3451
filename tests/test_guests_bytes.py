"""The guests' files: the registry finds them, and their bytes are what their source says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vmmsim import exits, guests, models
from vmmsim.asm import assemble, strip_comments
from vmmsim.config import MachineConfig
from vmmsim.cpu.modes import MODES
from vmmsim.cpu.state import Registers
from vmmsim.errors import ImageError, ImageNotFound, NotSupported, UsageError
from vmmsim.layout import BOOT_TABLES, BOOT_TABLES_SIZE
from vmmsim.memory import GuestMemory

#: The guests that the project promises to have.
PROMISED = {
    *("loop", "lwn", "echo", "guess", "hello16", "hello32", "hello64", "widths", "ring3", "fault"),
    *("faults-real", "faults-32", "faults-64", "faults-user", "traps-real", "traps-32", "traps-64"),
    *("timer-real", "timer-long", "timer-user", "serial-echo", "demand-paging", "syscall-int"),
    "smp-ping-pong",
}


def memory_for(guest: guests.Guest) -> GuestMemory:
    """Memory as the machine makes it: RAM with the devices' holes."""
    memory = GuestMemory()
    config = MachineConfig(**guest.machine)
    for start, length in models.ram(config):
        memory.add(start, length)
    return memory


def test_every_promised_guest_is_there() -> None:
    assert set(guests.names()) >= PROMISED


@pytest.mark.parametrize("name", guests.names())
def test_committed_bytes_are_the_assembled_source(name: str) -> None:
    pytest.importorskip("keystone", reason="keystone-engine has no wheel here: pip install vmmsim[asm]")
    guest = guests.load(name)
    manifest = guest.manifest
    assert assemble(guest.source, manifest.bits, manifest.load) == guest.code, (
        f"run: python guests/build.py {name}"
    )


@pytest.mark.parametrize("name", guests.names())
def test_manifest_is_sound(name: str) -> None:
    guest = guests.load(name)
    manifest, expected = guest.manifest, guest.manifest.expected
    assert manifest.mode in MODES
    assert manifest.load <= manifest.entry < manifest.load + len(guest.code)
    assert expected.exit in {kind.kind for kind in exits.EXITS}
    assert (expected.exit == "guest_exit") == (expected.code is not None)
    assert set(expected.registers) <= set(Registers.__struct_fields__)
    assert set(manifest.devices) <= set(models.DEVICES)
    memory = memory_for(guest)
    guest.image.place(memory)
    assert all(check.data and memory.contains(check.address, len(check.data)) for check in expected.memory)
    if manifest.mode not in ("real", "reset"):
        assert memory.contains(BOOT_TABLES, BOOT_TABLES_SIZE)
        assert manifest.load + len(guest.code) <= BOOT_TABLES


def test_unknown_guest_names_those_that_there_are() -> None:
    with pytest.raises(ImageNotFound, match="no guest 'lop'") as error:
        guests.load("lop")
    assert "loop" in error.value.hint


def test_guests_of_a_wheel_are_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "_guests" / "tiny"
    folder.mkdir(parents=True)
    manifest = 'title="t"\nmode="real"\nbits=16\nload=0\nentry=0\nmemory="4K"\n'
    (folder / "guest.toml").write_text(manifest + '[expected]\nexit="halt"\nmax_exits=0\n')
    (folder / "tiny.hex").write_text("f4\n")
    (folder / "tiny.asm").write_text("hlt\n")
    monkeypatch.setattr(guests, "_PACKAGE", tmp_path)
    assert guests.names() == ["tiny"]
    assert (guests.load("tiny").code, guests.load("tiny").memory) == (b"\xf4", 4096)

    (folder / "guest.toml").write_text(manifest + 'colour="red"\n')
    with pytest.raises(ImageError, match="guest 'tiny' is not sound"):
        guests.load("tiny")

    monkeypatch.setattr(guests, "_PACKAGE", tmp_path / "elsewhere" / "vmmsim")
    with pytest.raises(ImageNotFound, match="no guests"):
        guests.names()


def test_blocks_of_three_modes_share_their_labels() -> None:
    pytest.importorskip("keystone", reason="keystone-engine has no wheel here: pip install vmmsim[asm]")
    source = """
        mov ax, last        ; a label of another block
    .code32
        mov eax, last       # the other kind of comment
    .code64
        mov rax, [rcx]
    last: .ascii "a;b#c"
    """
    code = assemble(source, 16, 0x7C00)
    assert code == bytes.fromhex("b80b7c b80b7c0000 488b01") + b"a;b#c"


def test_comments_end_the_line_but_not_a_text() -> None:
    assert strip_comments('nop ; x\n.ascii "a;\\"#" # y\nmov al, \';\'\n') == (
        'nop\n.ascii "a;\\"#"\nmov al, \';\'\n'
    )


def test_assembler_errors_name_the_line() -> None:
    pytest.importorskip("keystone", reason="keystone-engine has no wheel here: pip install vmmsim[asm]")
    with pytest.raises(ImageError, match="at line 3: mvo ax, 1"):
        assemble("nop\nN = 4\nmvo ax, 1 ; typing error\n", 16)
    with pytest.raises(ImageError, match="Cannot find a symbol"):
        assemble("jmp nowhere\n", 16)
    with pytest.raises(UsageError, match="8-bit code"):
        assemble("nop", 8)


def test_without_keystone_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keystone", None)
    with pytest.raises(NotSupported) as error:
        assemble("nop", 16)
    assert error.value.hint == "pip install vmmsim[asm]"
