"""Several vCPUs: INIT, STARTUP, IPIs, LOCK, code that another vCPU writes; on every CPU.

The first vCPU begins in flat 32-bit code, starts the others through its local APIC (SDM vol. 3,
8.4.4.1), and they begin in real mode at TRAMPOLINE.
"""

from __future__ import annotations

import time

import pytest

from vmmsim import Machine
from vmmsim.budget import seconds
from vmmsim.diff import TraceStep, compare_traces
from vmmsim.errors import UsageError
from vmmsim.exits import BudgetSpent, Cancelled, Exit, GuestExit, Halt
from vmmsim.loaders import load_bytes
from vmmsim.testing.slow import time_limit

pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")

CODE, TRAMPOLINE, IDT, VARS = 0x10000, 0x8000, 0x5000, 0x6000
LAPIC = 0xFEE00000
#: INIT to all others, then STARTUP at TRAMPOLINE; the ICR is at 300h.
WAKE = f"""
mov ebx, {LAPIC}
mov dword ptr [ebx + 0xF0], 0x1FF
mov dword ptr [ebx + 0x300], 0x000C4500
mov dword ptr [ebx + 0x300], {0x000C4600 | TRAMPOLINE >> 12}
"""
EXIT = "mov al, {code}\nout 0xf4, al\n"


def smp(backend: str, code: str, other: str, cpus: int = 2, **arguments: object) -> Machine:
    """A machine of which the first vCPU runs `code`, 32-bit, and the others `other`, 16-bit."""
    from vmmsim.asm import assemble

    machine = Machine(backend=backend, model="pc", memory=1 << 20, cpus=cpus, **arguments)  # type: ignore[arg-type]
    image = load_bytes(assemble(code, 32, CODE), name="test", load_address=CODE, mode="p32")
    machine.load(image)
    machine.memory.write(TRAMPOLINE, assemble(other, 16, TRAMPOLINE))
    return machine


#: Each vCPU prints its letter when it is its turn: TURN counts.
PING = f"""{WAKE}
mov ecx, 0
next:
wait_turn:
pause
test byte ptr [{VARS}], 1
jnz wait_turn
mov al, 0x41
out 0xe9, al
inc byte ptr [{VARS}]
inc ecx
cmp ecx, 20
jb next
last:
pause
cmp byte ptr [{VARS}], 40
jb last
{EXIT.format(code=3)}
"""
PONG = f"""
xor ax, ax
mov ds, ax
next:
pause
test byte ptr [{VARS}], 1
jz next
mov al, 0x42
out 0xe9, al
inc byte ptr [{VARS}]
cmp byte ptr [{VARS}], 40
jb next
cli
hlt
"""


def traced(backend: str) -> tuple[list[TraceStep], bytes, Exit]:
    with smp(backend, PING, PONG, clock="exits") as machine:
        trace: list[TraceStep] = []
        machine.observe(lambda *access: trace.append(TraceStep.of_access(*access)))
        end = machine.run(budget=seconds(time_limit(20)))
        return trace, machine.output.data, end


def test_two_vcpus_take_turns_by_memory(backend_name: str) -> None:
    trace, output, end = traced(backend_name)
    assert end == GuestExit(3)
    assert output == b"AB" * 20
    assert len(trace) == 3 + 40 + 1


def test_the_trace_is_the_same_on_every_cpu(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced(backend_name)[0]
    monkeypatch.delenv("VMMSIM_UNICORN", raising=False)
    found = compare_traces(trace, traced("unicorn")[0], names=(backend_name, "unicorn"))
    assert found is None, found


#: Each adds to one counter, with LOCK; the first waits for all.
ADDS = 20_000
COUNT = f"""{WAKE}
mov ecx, {ADDS}
add:
lock inc dword ptr [{VARS}]
loop add
wait_all:
pause
mov eax, [{VARS}]
cmp eax, {ADDS} * {{cpus}}
jb wait_all
{EXIT.format(code=5)}
"""
COUNTS = f"""
xor ax, ax
mov ds, ax
mov ecx, {ADDS}
add:
lock inc dword ptr [{VARS}]
dec ecx
jnz add
cli
hlt
"""


@pytest.mark.parametrize("cpus", [2, 4])
def test_locked_additions_of_several_vcpus_are_all_counted(backend_name: str, cpus: int) -> None:
    with smp(backend_name, COUNT.format(cpus=cpus), COUNTS, cpus) as machine:
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(5)
        assert int.from_bytes(machine.memory.read(VARS, 4), "little") == ADDS * cpus


#: The other vCPU halts; each fixed IPI (vector 40h) has it add 1 and tell so.
CALL = f"""{WAKE}
mov ecx, 0
again:
mov eax, [{VARS + 4}]
cmp eax, 0
je again
call_it:
mov dword ptr [ebx + 0x300], 0x000C4040
wait_it:
pause
mov eax, [{VARS}]
cmp eax, ecx
jbe wait_it
inc ecx
cmp ecx, 10
jb call_it
{EXIT.format(code=6)}
"""
CALLED = f"""
xor ax, ax
mov ds, ax
mov ss, ax
mov sp, 0x7000
mov word ptr [0x100], {TRAMPOLINE + 0x80}
mov word ptr [0x102], 0
mov eax, cr0
lgdt [{VARS + 0x20}]
or al, 1
mov cr0, eax
mov cx, 0x18
mov fs, cx
and al, 0xfe
mov cr0, eax
mov edi, {LAPIC}
mov dword ptr fs:[edi + 0xF0], 0x1FF
mov dword ptr [{VARS + 4}], 1
sti
halts:
hlt
jmp halts
"""
HANDLER = f"""
mov dword ptr fs:[edi + 0xB0], 0
inc dword ptr [{VARS}]
iret
"""


def test_an_ipi_wakes_a_halted_vcpu(backend_name: str) -> None:
    from vmmsim.asm import assemble

    with smp(backend_name, CALL, CALLED) as machine:
        gdt = machine.cpu.gdt
        machine.memory.write(VARS + 0x20, gdt.limit.to_bytes(2, "little") + gdt.base.to_bytes(4, "little"))
        machine.memory.write(TRAMPOLINE + 0x80, assemble(HANDLER, 16, TRAMPOLINE + 0x80))
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(6)
        assert machine.memory.read(VARS, 1) == b"\x0a"
        assert machine.counts()["halt"] >= 10


#: The first vCPU rewrites the immediate of an instruction that the other executes all the time, which
#: tells what it has loaded (SDM vol. 3, 8.1.3: with a serializing instruction in between).
WRITES = f"""{WAKE}
mov edx, 1
again:
mov byte ptr [{TRAMPOLINE + 5}], dl
seen:
pause
cmp byte ptr [{VARS}], dl
jne seen
inc dl
jnz again
{EXIT.format(code=7)}
"""
WRITTEN = f"""
xor ax, ax
mov ds, ax
again:
mov dl, 0
mov byte ptr [{VARS}], dl
xor eax, eax
cpuid
jmp again
"""


def test_code_that_another_vcpu_has_written_is_what_is_executed(backend_name: str) -> None:
    with smp(backend_name, WRITES, WRITTEN) as machine:
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(7)


def test_the_other_vcpus_wait_until_they_are_started(backend_name: str) -> None:
    with smp(backend_name, "hlt\n", "hlt\n") as machine:
        assert machine.run(budget=seconds(time_limit(20))) == Halt()
        assert [item.status for item in machine.processors] == ["halted", "waits"]


def test_init_brings_a_running_vcpu_back_to_waiting(backend_name: str) -> None:
    spins = f"xor ax, ax\nmov ds, ax\nmov byte ptr [{VARS}], 1\nspin:\njmp spin\n"
    code = f"""{WAKE}
started:
pause
cmp byte ptr [{VARS}], 1
jne started
mov dword ptr [ebx + 0x300], 0x000C4500
mov byte ptr [{VARS}], 0
mov dword ptr [ebx + 0x300], {0x000C4600 | TRAMPOLINE >> 12}
again:
pause
cmp byte ptr [{VARS}], 1
jne again
mov dword ptr [ebx + 0x300], 0x000C4500
{EXIT.format(code=8)}
"""
    with smp(backend_name, code, spins) as machine:
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(8)


def test_an_ipi_to_nobody_does_nothing(backend_name: str) -> None:
    code = f"""mov ebx, {LAPIC}
mov dword ptr [ebx + 0xF0], 0x1FF
mov dword ptr [ebx + 0x310], 0x07000000
mov dword ptr [ebx + 0x300], 0x4040
mov dword ptr [ebx + 0x300], 0x4500
mov dword ptr [ebx + 0x300], 0x4608
{EXIT.format(code=9)}
"""
    with smp(backend_name, code, "hlt\n") as machine:
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(9)


def test_what_any_vcpu_asks_for_ends_the_run(backend_name: str) -> None:
    spin = f"{WAKE}spin:\npause\njmp spin\n"
    with smp(backend_name, spin, EXIT.format(code=4)) as machine:
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(4)
        assert machine.processors.current == 1


def test_a_cancel_ends_the_run_of_all(backend_name: str) -> None:
    import threading

    spin = f"{WAKE}spin:\npause\njmp spin\n"
    with smp(backend_name, spin, "spin:\njmp spin\n") as machine:
        threading.Timer(0.2, machine.cancel).start()
        began = time.monotonic()
        assert machine.run() == Cancelled()
        assert time.monotonic() - began < time_limit(5)
        assert machine.run(budget=seconds(0.1)) == BudgetSpent("seconds", 0.1)


def test_one_exit_at_a_time_shows_whose_it_is(backend_name: str) -> None:
    with smp(backend_name, PING, PONG, clock="exits") as machine:
        seen = []
        for exit in machine.exits():
            if exit.kind == "port_write" and exit.address == 0xE9:
                seen.append((machine.processors.current, exit.value))
        assert exit == GuestExit(3)
        assert seen == [(0, 0x41), (1, 0x42)] * 20


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_run_of_vcpus_that_take_turns_repeats(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", engine)

    def run() -> tuple[bytes, list[int | None], int]:
        with smp("unicorn", COUNT.format(cpus=2), COUNTS, clock="insns") as machine:
            assert machine.run(budget=seconds(time_limit(20))) == GuestExit(5)
            return machine.output.data, [item.vcpu.insns for item in machine.processors], machine.clock.now()

    assert run() == run()


def test_several_vcpus_need_local_apics() -> None:
    with pytest.raises(UsageError, match="without local APICs"):
        Machine(cpus=2)
    with pytest.raises(UsageError, match="0 vCPUs"):
        Machine(model="pc", cpus=0)
