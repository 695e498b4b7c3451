"""The portable engine's free code: nothing is made twice or lost, and the guest cannot tell."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

pytest.importorskip("unicorn")

from vmmsim.backends.unicorn_native.vcpu import native_usable
from vmmsim.backends.unicorn_portable import free
from vmmsim.backends.unicorn_portable.free import free_usable
from vmmsim.backends.unicorn_portable.nested import NestedTables
from vmmsim.backends.unicorn_portable.phases import Phases
from vmmsim.budget import insns, seconds
from vmmsim.cpu.modes import setup
from vmmsim.cpu.state import Segment
from vmmsim.exits import BudgetSpent, Cancelled, Halt
from vmmsim.loaders import load_bytes
from vmmsim.machine import Machine
from vmmsim.memory import Region

pytestmark = pytest.mark.unicorn

HOLE = 0xD0000
_BIG = 2 << 20


@pytest.fixture(autouse=True)
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", "portable")


def _machine(code: str, mode: str = "real", **config: Any) -> Machine:
    machine = Machine(backend="unicorn", memory=1 << 20, extra_devices=("scratch",), **config)
    machine.memory.write(0x4000, bytes.fromhex(code))
    machine.vcpu.set_state(setup(mode, 0x4000, 1 << 20).state)
    return machine


def _free(machine: Machine) -> bool:
    return machine.vcpu._free  # type: ignore[attr-defined, no-any-return]


def test_this_unicorn_has_what_freedom_needs() -> None:
    assert free_usable() == (True, "free code passed its self-test")


# xor ax, ax; mov es, ax; cld; outer: mov ecx, 4000; l: inc dword [0x8000]; lock inc dword [0x8004];
# mov edx, 1; lock xadd [0x8008], edx; mov edx, [0x800c]; inc edx; xchg [0x800c], edx; mov esi, ecx;
# mov cx, 3; mov di, 0x9000; mov al, 0x55; rep stosb; mov ecx, esi; dec ecx; jnz l
_COUNTING = (
    "31c0 8ec0 fc 66b9a00f0000 66ff060080 f066ff060480 66ba01000000 f0660fc1160880 668b160c80 6642 6687160c80"
    "6689ce b90300 bf0090 b055 f3aa 6689f1 6649 75c8"
)
# inc dword [fs:0x10]; in al, 0x80; inc bx; mov ax, bx; out 0x80, ax; cmp bx, 120; jb outer; hlt
_ACCESSES = "6466ff061000 e480 43 89d8 e780 83fb78 {back} f4"


def test_stops_at_any_moment_leave_nothing_undone_or_done_twice() -> None:
    head = bytes.fromhex(_COUNTING)
    tail = bytes.fromhex(_ACCESSES.format(back="0f820000"))
    loop = 5  # behind xor, mov, cld
    back = loop - (len(head) + len(tail) - 1) & 0xFFFF
    code = head + tail[:-3] + back.to_bytes(2, "little") + tail[-1:]
    with _machine(code.hex()) as machine:
        state = machine.vcpu.state()
        state.fs = Segment(HOLE >> 4, HOLE, 0xFFFF, 0x93)
        state.rbx = 0
        machine.vcpu.set_state(state)
        seen: list[tuple[str, int]] = []
        phases = set()

        def observe(cls: Any, address: int, size: int, value: int) -> None:
            seen.append((cls.kind, value))
            phases.add(_free(machine))

        machine.observe(observe)
        over = threading.Event()

        def cancel() -> None:
            pause = random.Random(3)
            for _ in range(4000):  # so that a slow host, too, comes to the end
                if over.wait(pause.random() / 4000):
                    return
                machine.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        stops = 0
        try:
            while (exit := machine.run()) != Halt():
                assert exit == Cancelled()
                stops += 1
        finally:
            over.set()
            thread.join()
        words = [machine.memory.read_int(at, 4) for at in range(0x8000, 0x8010, 4)]
        assert words == [480_000] * 4, f"after {stops} stops"
        assert stops > 50, "or this tests nothing"
        assert phases == {True}
        wanted: list[tuple[str, int]] = []
        for n in range(120):
            wanted += [("mmio_read", n), ("mmio_write", n + 1), ("port_read", 0xFF), ("port_write", n + 1)]
        assert [kind for kind, _ in seen] == [kind for kind, _ in wanted]
        assert [v for k, v in seen if k.endswith("write")] == [v for k, v in wanted if k.endswith("write")]


@pytest.mark.parametrize("stop_at_each", [False, True])
def test_the_guest_sees_no_breakpoint_but_its_own(stop_at_each: bool) -> None:
    # mov eax, 0x1234; mov dr0, eax; mov dr1, eax; mov ecx, 20; l: in al, 0x80; mov eax, dr0; mov ebx, dr7;
    # mov edx, dr6; cmp eax, 0x1234; jne bad; cmp ebx, 0x400; jne bad; cmp edx, 0xffff0ff0; jne bad; loop l;
    # hlt; bad: hlt
    code = (
        "66b834120000 0f23c0 0f23c8 66b914000000 e480 0f21c0 0f21fb 0f21f2 663d34120000 7515 6681fb00040000"
        "750c 6681faf00fffff 7503 e2d9 f4 f4"
    )
    with _machine(code) as machine:
        if stop_at_each:
            machine.observe(lambda *access: machine.vcpu.stop_here(Cancelled()))
        runs = 0
        while machine.run(budget=seconds(60)) != Halt():
            assert machine.vcpu.state().dr7 == 0x400
            runs += 1
        assert _free(machine)
        assert machine.cpu.rip == 0x4000 + len(bytes.fromhex(code)) - 1
        assert runs == (20 if stop_at_each else 0)


def test_a_guest_that_arms_a_breakpoint_gets_its_debug_exception() -> None:
    # mov word [4], h; mov word [6], 0; mov eax, t; mov dr0, eax; mov eax, 1; mov dr7, eax; nop;
    # t: inc bx; hlt; h: mov bp, bx; xor eax, eax; mov dr7, eax; iret
    code = (
        "c7060400 2740 c70606000000 66b824400000 0f23c0 66b801000000 0f23f8 90 43 f4 9089dd 6631c0 0f23f8 cf"
    )
    with _machine(code) as machine:
        state = machine.vcpu.state()
        state.rbx, state.rbp, state.rsp = 5, 0, 0x7000
        machine.vcpu.set_state(state)
        target = bytes.fromhex(code).index(b"\x43\xf4\x90") + 0x4000
        machine.memory.write(0x4000 + 14, target.to_bytes(4, "little"))
        machine.memory.write(0x4004, (target + 3).to_bytes(2, "little"))

        assert machine.run(budget=seconds(60)) == Halt()

        assert (machine.cpu.rbp & 0xFFFF, machine.cpu.rbx & 0xFFFF) == (5, 6)


def test_code_is_counted_while_it_makes_many_accesses_to_mmio() -> None:
    # mov cx, 3000; l: mov [fs:0], cx; loop l; hlt
    with _machine("b9b80b 64890e0000 e2f9 f4") as machine:
        state = machine.vcpu.state()
        state.fs = Segment(HOLE >> 4, HOLE, 0xFFFF, 0x93)
        machine.vcpu.set_state(state)
        seen = []
        machine.observe(lambda *access: seen.append((access[3], _free(machine))))

        assert machine.run(budget=seconds(60)) == Halt()

        assert [value for value, _ in seen] == list(range(3000, 0, -1))
        assert seen[0][1], "it begins free"


def test_counting_ends_freedom_exactly_and_gives_it_back() -> None:
    with _machine("31c0 40 ebfd") as machine:  # xor ax, ax; l: inc ax; jmp l
        assert machine.run(budget=insns(101)) == BudgetSpent("insns", 101)
        assert machine.cpu.rax & 0xFFFF == 50
        assert not _free(machine)
        threading.Timer(0.05, machine.cancel).start()
        before = machine.cpu.rip
        assert machine.run(budget=seconds(60)) == Cancelled()
        assert before in (0x4002, 0x4003)


def test_without_its_proof_code_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free, "free_usable", lambda: (False, "a test says so"))
    with _machine("b90300 e680 40 e2fb f4") as machine:  # mov cx, 3; l: out 0x80, al; inc ax; loop l; hlt
        assert machine.run(budget=seconds(60)) == Halt()
        assert not _free(machine)
        assert machine.accesses.total == 3


#: mov rsp, 0x7000; gate 40h to h; lidt; the local APIC on; an IPI 40h to itself; pushfq; pop rdx; sti; nop;
#: cli; out 0xe9, '.'; out 0xe9, TF of the image; out 0xf4, 0; h: out 0xe9, 'I'; EOI; iretq
_WINDOW = (
    "bc00700000488d056d000000bf00540000668907668ccb66895f02c74704008e000048c747080000000066c70425f04f0000"
    "ff0f48c70425f24f0000005000000f011c25f04f000041bf0000e0fe41c787f0000000ff01000041c7870003000040000400"
    "9c5afb90fab02ee6e988f024010430e6e9b000e6f4b049e6e941c787b00000000000000048cf"
)


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_window_of_one_instruction_is_seen_and_pushf_stores_no_step(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "native" and not native_usable()[0]:
        pytest.skip(native_usable()[1])
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    with Machine(model="pc", backend="unicorn", memory=1 << 20) as machine:
        image = load_bytes(bytes.fromhex(_WINDOW), name="window", load_address=0x7C00, mode="l64")
        machine.load(image)
        printed = []
        machine.observe(lambda cls, address, size, value: address == 0xE9 and printed.append(value))

        machine.run(budget=seconds(60))

        assert bytes(printed) == b"I.0"


def test_phases_by_the_clock() -> None:
    now = 0.0
    phases = Phases(lambda: now)
    phases.freed(0)
    assert not phases.busy(63)
    now = 0.01  # 64 in 10 ms are 6,400 a second
    assert phases.busy(64)
    now = 0.02
    assert not phases.quiet(64 + 100), "10,000 a second"
    now = 0.03
    assert not phases.quiet(164), "freedom was brief: two slices are waited for"
    now = 0.04
    assert phases.quiet(164)
    phases.freed(164)
    now = 1.0
    assert not phases.busy(164 + 64), "some 70 a second"


def test_tables_have_the_memory_at_its_own_addresses_and_nothing_else() -> None:
    ram = Region(0, 2 * _BIG + 0x3000, readonly=False, name="ram")
    rom = Region(0xFFFF0000, 0x10000, readonly=True, name="rom")
    tables = NestedTables((ram, rom))
    try:

        def look(gpa: int) -> tuple[int, int] | None:
            """(address, rights) by a walk of the tables (AMD APM vol. 2, 5.3)."""
            table = tables.gpa
            for shift in (39, 30, 21, 12):
                at = table - tables.gpa + (gpa >> shift & 511) * 8
                entry = int.from_bytes(tables.memory[at : at + 8], "little")
                if not entry & 1:
                    return None
                table = entry & 0xFFFFFFFFFF000
                if shift == 12 or entry & 0x80:
                    return table | gpa & (1 << shift) - 1, entry & 6
            raise AssertionError

        for gpa in (0, 0x1234, _BIG - 1, _BIG, 2 * _BIG + 0x2FFF):
            assert look(gpa) == (gpa, 6)
        for gpa in (0xFFFF0000, 0xFFFFFFFF):
            assert look(gpa) == (gpa, 4)
        for gpa in (2 * _BIG + 0x3000, 0xFFFE0000, 1 << 32, tables.gpa, (1 << 48) - 1):
            assert look(gpa) is None
    finally:
        tables.close()
        ram.buffer.close()
        rom.buffer.close()


def test_memory_beyond_their_reach_is_said() -> None:
    far = Region(1 << 40, 0x1000, readonly=False, name="far")
    try:
        with pytest.raises(LookupError, match="1 TiB"):
            NestedTables((far,))
    finally:
        far.buffer.close()
