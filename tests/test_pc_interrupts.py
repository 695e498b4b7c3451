"""Interrupts of the `pc` machine: timer, serial port, halts and resets, the same on every CPU.

The guests are 16-bit code; vectors 8-15 are IRQ 0-7, as a PC's BIOS has them.
"""

from __future__ import annotations

import threading
import time

import pytest

from vmmsim import Machine
from vmmsim.budget import seconds
from vmmsim.diff import TraceStep, compare_traces
from vmmsim.errors import NotSupported, UsageError
from vmmsim.exits import Cancelled, GuestExit, Halt, SystemEvent
from vmmsim.loaders import load_bytes
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit

pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")

HANDLER = 0x7D00
#: ICW1-4 of the master 8259A (vectors from 8), then its mask.
PIC = (
    "mov al, 0x11\nout 0x20, al\nmov al, 8\nout 0x21, al\nmov al, 4\nout 0x21, al\nmov al, 1\nout 0x21, al\n"
)
#: Counter 0, mode 2, 1,193 ticks: 1 kHz.
PIT = "mov al, 0x34\nout 0x43, al\nmov al, 0xa9\nout 0x40, al\nmov al, 4\nout 0x40, al\n"
TICK = f"cli\n{PIC}mov al, 0xfe\nout 0x21, al\nmov word ptr [0x20], {HANDLER}\nmov word ptr [0x22], 0\n{PIT}"
EOI = "push ax\nmov al, 0x20\nout 0x20, al\npop ax\n"
#: Each tick prints a dot.
DOT = f"push ax\nmov al, 0x2e\nout 0xe9, al\npop ax\ninc cx\n{EOI}iret\n"
HALTS = f"{TICK}xor cx, cx\nsti\nagain:\nhlt\ncmp cx, 6\njb again\ncli\nhlt\n"
SPINS = f"{TICK}xor cx, cx\nsti\nagain:\nin al, 0x80\ncmp cx, 6\njb again\ncli\nhlt\n"
SILENT = f"{TICK}xor cx, cx\nsti\nagain:\njmp again\n"
#: The handler of SILENT ends the machine at its fifth tick.
FIFTH = f"inc cx\n{EOI}cmp cx, 5\njb back\nmov al, 7\nout 0xf4, al\nback:\niret\n"
ECHO = f"""cli
{PIC}mov al, 0xef
out 0x21, al
mov word ptr [0x30], {HANDLER}
mov word ptr [0x32], 0
mov dx, 0x3fc
mov al, 8
out dx, al
mov dx, 0x3f9
mov al, 1
out dx, al
sti
again:
hlt
jmp again
"""
RECEIVED = f"push dx\nmov dx, 0x3f8\nin al, dx\nout dx, al\npop dx\n{EOI}iret\n"


def pc(backend: str, code: str, handler: str = "iret\n", **arguments: object) -> Machine:
    from vmmsim.asm import assemble

    machine = Machine(backend=backend, model="pc", memory=1 << 20, **arguments)  # type: ignore[arg-type]
    machine.load(load_bytes(assemble(code, 16, 0x7C00), name="test", load_address=0x7C00, mode="real"))
    machine.memory.write(HANDLER, assemble(handler, 16, HANDLER))
    return machine


def traced(backend: str, code: str, handler: str, **arguments: object) -> tuple[list[TraceStep], bytes]:
    with pc(backend, code, handler, clock="exits", **arguments) as machine:
        trace: list[TraceStep] = []
        machine.observe(lambda *access: trace.append(TraceStep.of_access(*access)))
        end = machine.run(budget=seconds(time_limit(20)))
        trace.append(TraceStep.of(end, machine.cpu.rip))
        return trace, machine.output.data


@pytest.mark.parametrize("code", [HALTS, SPINS], ids=["halts", "spins on a port"])
def test_a_timer_gives_the_same_trace_on_every_cpu(
    backend_name: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, output = traced(backend_name, code, DOT)
    assert output == b"......"
    assert trace[-1].kind == "halt"
    monkeypatch.delenv("VMMSIM_UNICORN", raising=False)
    reference, _ = traced("unicorn", code, DOT)
    found = compare_traces(trace, reference, names=(backend_name, "unicorn"))
    assert found is None, str(found)


def test_characters_come_by_interrupt(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, output = traced(backend_name, ECHO, RECEIVED, source=BytesSource(b"hello"))
    assert output == b"hello"
    assert trace[-1].kind == "halt"
    monkeypatch.delenv("VMMSIM_UNICORN", raising=False)
    reference, _ = traced("unicorn", ECHO, RECEIVED, source=BytesSource(b"hello"))
    assert compare_traces(trace, reference) is None


def test_a_guest_that_spins_without_an_exit_gets_its_ticks_in_real_time(backend_name: str) -> None:
    with pc(backend_name, SILENT, FIFTH) as machine:
        assert machine.run(budget=seconds(time_limit(10))) == GuestExit(7)


@pytest.mark.unicorn
@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_run_by_instructions_repeats_to_the_instruction(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    ends = []
    for _ in range(2):
        with pc("unicorn", SILENT, FIFTH, clock="insns") as machine:
            assert machine.run(budget=seconds(time_limit(30))) == GuestExit(7)
            ends.append((machine.vcpu.insns, machine.vcpu.registers()))
    assert ends[0] == ends[1]
    # Mode 2 sets OUT high when it is chosen: an edge, and the first tick. Then four periods of 1,193
    # ticks of 1,193,182 Hz, at 50 million instructions a second.
    assert ends[0][0] is not None
    assert abs(ends[0][0] - 4 * 1193 * 50_000_000 // 1_193_182) < 200


@pytest.mark.parametrize("clock", ["host", "exits"])
def test_a_halt_that_nothing_can_end_is_the_end(backend_name: str, clock: str) -> None:
    with pc(backend_name, "sti\nhlt\n", clock=clock, source=BytesSource(b"")) as machine:
        assert machine.run(budget=seconds(time_limit(5))) == Halt()


def test_a_cancel_ends_a_halt(backend_name: str) -> None:
    with pc(backend_name, "sti\nhlt\n") as machine:  # input may still come
        timer = threading.Timer(0.2, machine.cancel)
        began = time.monotonic()
        timer.start()
        assert machine.run(budget=seconds(time_limit(20))) == Cancelled()
        assert time.monotonic() - began < time_limit(5)


def test_a_cancel_ends_a_halt_that_waits_for_a_timer_only(backend_name: str) -> None:
    with pc(backend_name, "sti\nhlt\n", source=BytesSource(b"")) as machine:
        machine.clock.timer(lambda: None).set(machine.clock.now() + 3600 * 10**9)
        timer = threading.Timer(0.2, machine.cancel)
        began = time.monotonic()
        timer.start()
        assert machine.run(budget=seconds(time_limit(20))) == Cancelled()
        assert time.monotonic() - began < time_limit(5)


@pytest.mark.kvm
def test_kvm_has_no_clock_of_instructions() -> None:
    with pytest.raises(NotSupported, match="does not count instructions"):
        Machine(backend="kvm", model="pc", clock="insns")


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("mov al, 0xfe\nout 0x64, al\nhlt\n", "reset"),
        ("in al, 0x92\nor al, 1\nout 0x92, al\nhlt\n", "reset"),
        ("mov dx, 0xcf9\nmov al, 6\nout dx, al\nhlt\n", "reset"),
        ("mov dx, 0x604\nmov ax, 0x3400\nout dx, ax\nhlt\n", "power_off"),
    ],
    ids=["keyboard controller", "port 92h", "port CF9h", "ACPI"],
)
def test_ways_to_end_a_pc(backend_name: str, code: str, event: str) -> None:
    with pc(backend_name, code) as machine:
        assert machine.run(budget=seconds(time_limit(10))) == SystemEvent(event)


def test_a_pc_without_its_interrupt_controller_is_never_interrupted(backend_name: str) -> None:
    with pc(backend_name, HALTS, DOT, without=("pic", "lapic", "ioapic"), clock="exits") as machine:
        assert machine.run(budget=seconds(time_limit(10))) == Halt()
        assert machine.output.data == b""


def test_a_clock_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no clock 'sun'"):
        Machine(backend="unicorn", clock="sun")
