"""Guests on hosts that are many times slower: time waits for them, and they get on.

The host is made slow by its clock (`vmmsim.testing.slow_host`): the tests take no longer than elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmsim import Machine
from vmmsim.budget import seconds
from vmmsim.exits import GuestExit, SystemEvent
from vmmsim.loaders import load_bytes, load_kernel
from vmmsim.streams import BytesSource
from vmmsim.testing.slow_host import slow_host

LINUX = Path(__file__).resolve().parents[2] / "shared" / "guests" / "linux"
MEMORY = 128 << 20

#: The master 8259A has vectors from 8, of which vector 8 is the timer's and open; counter 0 of the 8254 has
#: {low} and {high} as its count, in mode 2.
SET_UP = """
cli
mov al, 0x11
out 0x20, al
mov al, 8
out 0x21, al
mov al, 4
out 0x21, al
mov al, 1
out 0x21, al
mov al, 0xfe
out 0x21, al
mov word ptr [0x20], 0x7d00
mov word ptr [0x22], 0
mov al, 0x34
out 0x43, al
mov al, {low}
out 0x40, al
mov al, {high}
out 0x40, al
xor cx, cx
"""
EOI = "push ax\nmov al, 0x20\nout 0x20, al\npop ax\n"
#: Waits for 40 ms of the ACPI PM timer, and ends with the count of ticks.
AGAINST_THE_PM_TIMER = """
mov dx, 0x608
in eax, dx
mov ebx, eax
sti
again:
in eax, dx
sub eax, ebx
and eax, 0xffffff
cmp eax, 143182
jb again
"""
#: Counts to 1,000 outside of the handler.
COUNTS = """
xor bx, bx
sti
again:
inc bx
out 0x80, al
cmp bx, 1000
jb again
"""
END = "cli\nmov al, cl\nout 0xf4, al\n"


def machine(backend: str, code: str, handler: str) -> Machine:
    pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    from vmmsim.asm import assemble

    made = Machine(backend=backend, model="pc", memory=1 << 20)
    made.load(load_bytes(assemble(code, 16, 0x7C00), name="test", load_address=0x7C00, mode="real"))
    made.memory.write(0x7D00, assemble(handler, 16, 0x7D00))
    return made


def ticks_in_40_periods(backend: str, scale: int) -> int:
    """What Linux does with its timer (timer_irq_works), at 1 kHz: it wants to see 5 ticks."""
    code = SET_UP.format(low=0xA9, high=4) + AGAINST_THE_PM_TIMER + END
    with slow_host(scale), machine(backend, code, f"inc cx\n{EOI}iret\n") as made:
        end = made.run(budget=seconds(60))
        assert isinstance(end, GuestExit)
        return end.code


def test_a_guest_that_counts_ticks_against_a_counter_finds_them(backend_name: str) -> None:
    assert ticks_in_40_periods(backend_name, 1) >= 5


@pytest.mark.unicorn
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("scale", [20, 100])
def test_it_finds_them_on_slow_hosts(engine: str, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the slower has no time for a single tick in a period. Not on KVM: the clock is close to the
    host's there, whose counter the guest can read."""
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    assert ticks_in_40_periods("unicorn", scale) >= 5


def test_a_timer_that_is_quicker_than_its_handler_leaves_the_guest_time(backend_name: str) -> None:
    """25,000 ticks a second on a host 100 times slower, whose handler makes 20 exits."""
    code = SET_UP.format(low=48, high=0) + COUNTS + END
    with slow_host(100), machine(backend_name, code, "out 0x80, al\n" * 20 + f"{EOI}iret\n") as made:
        assert isinstance(made.run(budget=seconds(60)), GuestExit)


@pytest.mark.unicorn
@pytest.mark.timeout(110)
@pytest.mark.skipif(not LINUX.is_dir(), reason="no kernels beside this checkout (shared/guests/linux)")
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("bits", [64, 32])
def test_linux_boots_at_a_tenth_of_the_speed(engine: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    image = load_kernel(
        (LINUX / f"bzImage-tiny{bits}-lz4").read_bytes(),
        name="linux",
        memory_size=MEMORY,
        initrd=(LINUX / f"initrd-hello{bits}.cpio").read_bytes(),
        append="console=ttyS0 panic=-1 reboot=k",
    )
    with (
        slow_host(10),
        Machine(backend="unicorn", model="pc", memory=MEMORY, source=BytesSource(b"")) as made,
    ):
        made.load(image)
        assert made.run(budget=seconds(100)) == SystemEvent("reset")
        assert b"Kernel panic" not in made.output.data
        assert b"Run /init as init process" in made.output.data
