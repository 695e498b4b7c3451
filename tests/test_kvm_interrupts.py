"""Interrupts, NMI, CR8, MSR exits and several vCPUs under KVM.

The guests are real-mode and long-mode ones: this project's machines have a KVM that does not
emulate IRET in 32-bit protected mode. A handler writes to a port, and the test reads off the
guest's stack where it was interrupted. Rules: SDM vol. 3, 6.7 (NMI), 6.8 (IF and shadows),
10.8.6 (CR8).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmmsim import layout
from vmmsim.cpu import CpuState, Segment, Table
from vmmsim.cpu.cpuid import TABLE, cpuid, table
from vmmsim.cpu.validate import validate
from vmmsim.errors import NotSupported, UsageError
from vmmsim.exits import (
    Cancelled,
    Exit,
    Halt,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortRead,
    PortWrite,
    ReadAccess,
)

if sys.platform != "linux":
    pytest.skip("KVM is a part of Linux", allow_module_level=True)

from vmmsim.backends import kvm, kvm_msrs
from vmmsim.backends.base import VmOptions
from vmmsim.memory import GuestMemory
from vmmsim.testing.bench import CODE, HOLE, STACK, Bench
from vmmsim.testing.slow import time_limit

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(60)]

INTR, OTHER, GP, NMI = 0x20, 0x21, 13, 2
#: Ports of the guests: one to raise by, then those by which the handlers show up.
RAISE, IN_INTR, IN_NMI, IN_OTHER, IN_GP, MAIN = 0x10, 0x20, 0x22, 0x24, 0x26, 0x30
PORTS = {INTR: IN_INTR, NMI: IN_NMI, OTHER: IN_OTHER, GP: IN_GP}
IDT = 0xD000
HANDLERS = 0xE000
CODE64 = 0x10
#: Where the interrupted IP is on a stack that was empty.
FRAME = {"real": (STACK - 6, 2), "l64": (STACK - 40, 8)}
BOTH = pytest.mark.parametrize("mode", ["real", "l64"])

Seen = tuple[str, int, int]


class Guest(Bench):
    """A bench with handlers for INTR, OTHER, NMI and #GP, and this test as board and devices.

    A handler writes to its port, and ends with IRET; #GP's ends the guest. `seen` is the log:
    (what, address, IP): for a handler's port the IP that was interrupted, else 0.
    """

    def __init__(
        self,
        backend: kvm.KvmBackend,
        mode: str,
        code: str,
        *,
        options: VmOptions | None = None,
        **state: int,
    ) -> None:
        self.seen: list[Seen] = []
        self.pending_vectors: list[int] = []
        self.acknowledged: list[int] = []
        self.serviced = 0
        self.cr8: list[int] = []
        self.priority = 0
        self.on: dict[tuple[str, int], Callable[[], None]] = {}
        self.msrs: dict[int, int] = {}
        memory: dict[int, bytes] = {}
        for vector, port in PORTS.items():
            at = HANDLERS + 16 * vector
            iret = b"\xf4" if vector == GP else b"\xcf" if mode == "real" else b"\x48\xcf"
            memory[at] = b"\xe6" + bytes([port]) + iret
            if mode == "real":
                memory[4 * vector] = at.to_bytes(4, "little")
            else:
                gate = at & 0xFFFF | CODE64 << 16 | 0x8E00 << 32
                memory[IDT + 16 * vector] = gate.to_bytes(16, "little")

        def adjust(start: CpuState) -> None:
            start.rflags |= 0x200
            if mode == "l64":
                start.idt = Table(IDT, 0xFFF)
            for name, value in state.items():
                setattr(start, name, value)

        super().__init__(backend, mode, bytes.fromhex(code), memory=memory, options=options, adjust=adjust)
        self.vcpu.connect(self)

    def raise_(self, *vectors: int) -> None:
        self.pending_vectors += vectors
        self.vcpu.attention()

    def go(self) -> Exit:
        return self.run_inline(self)

    # the board

    def service(self) -> None:
        self.serviced += 1

    def pending(self) -> bool:
        return any(vector >> 4 > self.priority for vector in self.pending_vectors)

    def acknowledge(self) -> int:
        self.acknowledged.append(self.pending_vectors[0])
        return self.pending_vectors.pop(0)

    def cr8_written(self, value: int, /) -> None:
        self.cr8.append(value)
        self.priority = value
        self.vcpu.attention()

    def tsc(self) -> int:
        raise AssertionError("KVM has a TSC of its own")

    # the devices

    def note(self, what: str, address: int) -> None:
        ip = 0
        if what == "out" and address in PORTS.values():
            at, size = FRAME[self.mode]
            ip = int.from_bytes(self.memory.read(at, size), "little")
        self.seen.append((what, address, ip))
        self.on.get((what, address), lambda: None)()

    def port_read(self, port: int, size: int, /) -> int:
        self.note("in", port)
        return 0

    def port_write(self, port: int, size: int, value: int, /) -> None:
        self.note("out", port)

    def mmio_read(self, gpa: int, size: int, /) -> int:
        self.note("load", gpa)
        return 0

    def mmio_write(self, gpa: int, size: int, value: int, /) -> None:
        self.note("store", gpa)

    def msr_read(self, index: int, /) -> int | None:
        self.note("rdmsr", index)
        return self.msrs.get(index)

    def msr_write(self, index: int, value: int, /) -> bool:
        self.note("wrmsr", index)
        if index not in self.msrs:
            return False
        self.msrs[index] = value
        return True


@pytest.fixture(scope="module")
def backend() -> Iterator[kvm.KvmBackend]:
    opened = kvm.KvmBackend()
    yield opened
    opened.close()


@contextmanager
def later(seconds: float, what: Callable[[], None]) -> Iterator[None]:
    """Call `what` in another thread after `seconds`."""
    timer = threading.Timer(seconds, what)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def out(port: int) -> str:
    return f"e6{port:02x}"


# -- when an interrupt is taken

ACCESSES = {
    ("real", "out", RAISE): "e610",
    ("real", "in", RAISE): "e410",
    ("real", "load", HOLE): "a00080",
    ("real", "store", HOLE): "a20080",
    ("l64", "out", RAISE): "e610",
    ("l64", "in", RAISE): "e410",
    ("l64", "load", HOLE): "8a042500800000",
    ("l64", "store", HOLE): "88042500800000",
}


@pytest.mark.parametrize(("mode", "what", "address"), ACCESSES)
def test_an_interrupt_is_taken_right_behind_the_access_that_raised_it(
    backend: kvm.KvmBackend, mode: str, what: str, address: int
) -> None:
    code = ACCESSES[mode, what, address]
    with Guest(backend, mode, code + out(MAIN)) as guest:
        guest.on[what, address] = lambda: guest.raise_(INTR)
        assert guest.go() == Halt()
        behind = CODE + len(code) // 2
        assert guest.seen == [(what, address, 0), ("out", IN_INTR, behind), ("out", MAIN, 0)]
        assert guest.acknowledged == [INTR]
        assert guest.serviced == 2  # at connect, and when it was raised


@BOTH
def test_a_read_modify_write_is_whole_before_the_interrupt(backend: kvm.KvmBackend, mode: str) -> None:
    code = "fe060080" if mode == "real" else "fe042500800000"  # INC byte [HOLE]
    with Guest(backend, mode, code) as guest:
        guest.on["load", HOLE] = lambda: guest.raise_(INTR)
        guest.go()
        behind = CODE + len(code) // 2
        assert guest.seen == [("load", HOLE, 0), ("store", HOLE, 0), ("out", IN_INTR, behind)]


@BOTH
def test_the_line_may_go_low_before_the_instruction_is_over(backend: kvm.KvmBackend, mode: str) -> None:
    code = "fe060080" if mode == "real" else "fe042500800000"
    with Guest(backend, mode, code + "90") as guest:
        guest.on["load", HOLE] = lambda: guest.raise_(INTR)
        guest.on["store", HOLE] = guest.pending_vectors.clear
        guest.go()
        assert guest.seen == [("load", HOLE, 0), ("store", HOLE, 0)]
        assert guest.acknowledged == []


@BOTH
def test_sti_holds_an_interrupt_off_for_one_instruction(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "fa" + out(RAISE) + "90 fb 90 90") as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        guest.go()
        assert guest.seen == [("out", RAISE, 0), ("out", IN_INTR, CODE + 6)]


@BOTH
def test_an_access_in_the_shadow_of_sti_is_interrupted_behind_it(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "fa fb e410 90 90") as guest:
        guest.on["in", RAISE] = lambda: guest.raise_(INTR)
        guest.go()
        assert guest.seen == [("in", RAISE, 0), ("out", IN_INTR, CODE + 4)]


def test_mov_ss_holds_an_interrupt_off_for_one_instruction(backend: kvm.KvmBackend) -> None:
    # MOV AX, SS; CLI; OUT; STI; MOV SS, AX (in STI's shadow); NOP (in its own); NOP
    with Guest(backend, "real", "8cd0 fa" + out(RAISE) + "fb 8ed0 90 90") as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        guest.go()
        assert guest.seen == [("out", RAISE, 0), ("out", IN_INTR, CODE + 9)]


def test_popf_lets_an_interrupt_in_at_once(backend: kvm.KvmBackend) -> None:
    with Guest(backend, "real", "fa" + out(RAISE) + "680202 9d 90") as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        guest.go()
        assert guest.seen == [("out", RAISE, 0), ("out", IN_INTR, CODE + 7)]


@BOTH
def test_with_if_clear_no_interrupt_is_taken_or_acknowledged(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "fa" + out(RAISE) + "90" * 50) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        assert guest.go() == Halt()
        assert not guest.vcpu.interruptible
        assert guest.seen == [("out", RAISE, 0)]
        assert guest.acknowledged == []


@BOTH
def test_the_next_interrupt_follows_the_iret_of_the_one_before(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, out(RAISE) + out(MAIN)) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR, OTHER, INTR)
        guest.go()
        assert guest.seen == [
            ("out", RAISE, 0),
            ("out", IN_INTR, CODE + 2),
            ("out", IN_OTHER, CODE + 2),
            ("out", IN_INTR, CODE + 2),
            ("out", MAIN, 0),
        ]


@BOTH
def test_a_line_that_went_low_before_if_was_set_interrupts_nobody(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "fa" + out(RAISE) + out(MAIN) + "fb 90 90") as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        guest.on["out", MAIN] = guest.pending_vectors.clear
        assert guest.go() == Halt()
        assert guest.seen == [("out", RAISE, 0), ("out", MAIN, 0)]


@BOTH
def test_an_interrupt_may_be_raised_in_its_own_handler(backend: kvm.KvmBackend, mode: str) -> None:
    left = [5]

    def again() -> None:
        if left[0]:
            left[0] -= 1
            guest.raise_(INTR)

    with Guest(backend, mode, out(RAISE) + out(MAIN)) as guest:
        guest.on["out", RAISE] = again
        guest.on["out", IN_INTR] = again
        guest.go()
        handlers = [("out", IN_INTR, CODE + 2)] * 5
        assert guest.seen == [("out", RAISE, 0), *handlers, ("out", MAIN, 0)]


@BOTH
def test_a_spinning_guest_is_interrupted_from_another_thread(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "ebfe") as guest:
        guest.on["out", IN_INTR] = lambda: guest.vcpu.stop_here(Cancelled())
        for turn in range(1, 11):
            with later(0.01, lambda: guest.raise_(INTR)):
                assert guest.go() == Cancelled()
            assert len(guest.seen) == turn
        assert {ip for _, _, ip in guest.seen} == {CODE}


@BOTH
def test_the_window_that_kvm_announces_is_used(
    backend: kvm.KvmBackend, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on VMX and SVM: nothing but KVM_EXIT_IRQ_WINDOW_OPEN, however late it is here."""
    monkeypatch.setattr(kvm.KvmBackend, "late_windows", False)
    with Guest(backend, mode, "fa" + out(RAISE) + "fb" + "90" * 5000 + out(MAIN)) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR, OTHER)
        assert guest.go() == Halt()
        kinds = [what[:2] for what in guest.seen]
        assert kinds == [("out", RAISE), ("out", IN_INTR), ("out", IN_OTHER), ("out", MAIN)]
        assert guest.seen[1][2] >= CODE + 5


# -- HLT


@BOTH
def test_a_halted_cpu_is_woken_behind_the_hlt(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "f4" + out(MAIN)) as guest:
        assert guest.go() == Halt()
        assert guest.vcpu.interruptible
        guest.raise_(INTR)
        assert guest.go() == Halt()
        assert guest.seen == [("out", IN_INTR, CODE + 1), ("out", MAIN, 0)]


@BOTH
def test_sti_hlt_halts_first_and_is_interrupted_then(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "fa" + out(RAISE) + "fb f4" + out(MAIN)) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        assert guest.go() == Halt()
        assert guest.seen == [("out", RAISE, 0)]
        assert guest.vcpu.interruptible
        assert guest.go() == Halt()
        assert guest.seen[1:] == [("out", IN_INTR, CODE + 5), ("out", MAIN, 0)]


# -- NMI


@BOTH
def test_an_nmi_is_taken_with_if_clear_right_behind_the_access(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "fa" + out(RAISE) + out(MAIN)) as guest:
        guest.on["out", RAISE] = guest.vcpu.nmi
        guest.go()
        assert guest.seen == [("out", RAISE, 0), ("out", IN_NMI, CODE + 3), ("out", MAIN, 0)]


@BOTH
def test_an_nmi_is_masked_until_iret_and_at_most_one_waits(backend: kvm.KvmBackend, mode: str) -> None:
    times = [0]

    def again() -> None:
        times[0] += 1
        if times[0] == 1:
            for _ in range(3):
                guest.vcpu.nmi()
            assert guest.vcpu.state().events.nmi_pending

    with Guest(backend, mode, out(RAISE) + out(MAIN)) as guest:
        guest.on["out", RAISE] = guest.vcpu.nmi
        guest.on["out", IN_NMI] = again
        guest.go()
        taken = ("out", IN_NMI, CODE + 2)
        assert guest.seen == [("out", RAISE, 0), taken, taken, ("out", MAIN, 0)]


@BOTH
def test_an_nmi_comes_before_an_interrupt(backend: kvm.KvmBackend, mode: str) -> None:
    def both() -> None:
        guest.raise_(INTR)
        guest.vcpu.nmi()

    with Guest(backend, mode, out(RAISE) + out(MAIN)) as guest:
        guest.on["out", RAISE] = both
        guest.go()
        assert guest.seen == [
            ("out", RAISE, 0),
            ("out", IN_NMI, CODE + 2),
            ("out", IN_INTR, CODE + 2),
            ("out", MAIN, 0),
        ]


def test_an_nmi_needs_no_board_and_is_part_of_the_state(backend: kvm.KvmBackend) -> None:
    with Guest(backend, "real", out(MAIN)) as guest, Guest(backend, "real", out(MAIN)) as other:
        guest.vcpu._pins.board = None  # type: ignore[attr-defined]
        guest.vcpu.nmi()
        state = guest.vcpu.state()
        assert state.events.nmi_pending
        other.vcpu.set_state(state)
        for each in (guest, other):
            each.go()
            assert each.seen == [("out", IN_NMI, CODE), ("out", MAIN, 0)]
        guest.vcpu.nmi()
        state.events.nmi_pending = False
        guest.vcpu.set_state(state)
        assert not guest.vcpu.state().events.nmi_pending


# -- the board


def test_what_the_board_raises_ends_the_run_and_nothing_is_lost(backend: kvm.KvmBackend) -> None:
    class Broken(Guest):
        broken = True

        def service(self) -> None:
            super().service()
            if self.broken and self.seen:
                raise RuntimeError("broken clock")

    with Broken(backend, "real", out(RAISE) + out(MAIN)) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        with pytest.raises(RuntimeError, match="broken clock"):
            guest.go()
        assert guest.rip == CODE + 2
        guest.broken = False
        guest.go()
        assert guest.seen == [("out", RAISE, 0), ("out", IN_INTR, CODE + 2), ("out", MAIN, 0)]


def test_a_vcpu_without_a_board_is_not_interrupted(backend: kvm.KvmBackend) -> None:
    with Bench(backend, "real", bytes.fromhex("fb 90")) as bench:
        bench.vcpu.attention()
        assert bench.run() == Halt()


def test_attention_to_a_closed_vcpu_does_nothing(backend: kvm.KvmBackend) -> None:
    with Guest(backend, "real", "90") as guest:
        pass
    guest.vcpu.attention()
    guest.vcpu.nmi()
    with pytest.raises(UsageError):
        guest.vcpu.connect(guest)


# -- exits by run(), stops, state


def answer(guest: Guest, exit: Exit) -> None:
    """Answer an exit of run() as run_inline does."""
    if isinstance(exit, ReadAccess):
        read = guest.port_read if isinstance(exit, PortRead) else guest.mmio_read
        exit.reply(read(exit.address, exit.size))
    elif isinstance(exit, PortWrite):
        guest.port_write(exit.address, exit.size, exit.value)
    elif isinstance(exit, MmioWrite):
        guest.mmio_write(exit.address, exit.size, exit.value)


@BOTH
def test_run_takes_interrupts_as_run_inline_does(backend: kvm.KvmBackend, mode: str) -> None:
    code = "fa fb e410" + out(RAISE) + ("fe060080" if mode == "real" else "fe042500800000") + "f4"
    logs = []
    for inline in (True, False):
        with Guest(backend, mode, code + out(MAIN)) as guest:
            for place in (("in", RAISE), ("out", RAISE), ("load", HOLE)):
                guest.on[place] = lambda: guest.raise_(INTR)
            ends = 0
            while ends < 2:
                exit = guest.go() if inline else guest.run()
                answer(guest, exit)
                ends += exit == Halt()
            logs.append(guest.seen)
    assert logs[0] == logs[1]
    assert [what[:2] for what in logs[0]].count(("out", IN_INTR)) == 3


@BOTH
def test_a_stop_comes_before_the_interrupt_which_is_not_lost(backend: kvm.KvmBackend, mode: str) -> None:
    def both() -> None:
        guest.raise_(INTR)
        guest.vcpu.stop_here(Cancelled())

    with Guest(backend, mode, "e410" + out(MAIN)) as guest:
        guest.on["in", RAISE] = both
        assert guest.go() == Cancelled()
        assert guest.rip == CODE + 2
        assert guest.vcpu.state().events.interrupt is None
        assert guest.acknowledged == []
        assert guest.go() == Halt()
        assert guest.seen == [("in", RAISE, 0), ("out", IN_INTR, CODE + 2), ("out", MAIN, 0)]


@BOTH
def test_registers_set_between_runs_decide_whether_it_is_taken(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, out(MAIN) + "f4" + out(MAIN)) as guest:
        guest.raise_(INTR)
        guest.set(rflags=2)
        assert guest.go() == Halt()
        assert guest.acknowledged == []
        guest.set(rflags=0x202)
        assert guest.go() == Halt()
        assert guest.seen == [("out", MAIN, 0), ("out", IN_INTR, CODE + 3), ("out", MAIN, 0)]


@BOTH
def test_an_interrupt_given_up_by_the_board_is_part_of_the_state(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "90" + out(MAIN)) as guest, Guest(backend, mode, "90" + out(MAIN)) as other:
        # as a cancel that comes between the acknowledge and the entry leaves it
        acknowledge = guest.acknowledge

        def cancelled() -> int:
            guest.vcpu.cancel()
            return acknowledge()

        guest.acknowledge = cancelled  # type: ignore[method-assign]
        guest.raise_(INTR)
        assert guest.go() == Cancelled()
        state = guest.vcpu.state()
        assert state.events.interrupt == INTR
        assert state.rip == CODE
        other.vcpu.set_state(state)
        assert other.vcpu.state() == state
        for each in (guest, other):
            assert each.go() == Halt()
            assert each.seen == [("out", IN_INTR, CODE), ("out", MAIN, 0)]
        state.events.interrupt = None
        other.vcpu.set_state(state)
        assert other.vcpu.state().events.interrupt is None


def test_an_interrupt_of_a_state_is_a_vector() -> None:
    state = CpuState()
    for good in (None, 0, 255):
        state.events.interrupt = good
        validate(state)
    for bad in (-1, 256, "x"):
        state.events.interrupt = bad  # type: ignore[assignment]
        with pytest.raises(UsageError, match=r"events\.interrupt"):
            validate(state)


#: Instructions for both modes, and the accesses they make.
PIECES: dict[str, dict[str, list[tuple[str, int]]]] = {
    "real": {
        "fa": [],
        "fb": [],
        "90": [],
        "8ed0": [],
        "e410": [("in", RAISE)],
        "e610": [("out", RAISE)],
        "a00080": [("load", HOLE)],
        "fe060080": [("load", HOLE), ("store", HOLE)],
    },
    "l64": {
        "fa": [],
        "fb": [],
        "90": [],
        "e410": [("in", RAISE)],
        "e610": [("out", RAISE)],
        "fe042500800000": [("load", HOLE), ("store", HOLE)],
    },
}
MOV_SS = "8ed0"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from(["real", "l64"]), st.booleans())
def test_every_interrupt_is_delivered_once_and_where_if_and_shadows_allow(
    backend: kvm.KvmBackend, data: st.DataObject, mode: str, inline: bool
) -> None:
    """Against a model: each access raises one interrupt; IF and the shadows decide where it is taken."""
    access = PIECES[mode]
    pieces = data.draw(st.lists(st.sampled_from(list(access)), max_size=25))
    pieces += ["fb", "90", "90"]
    at, flag, last, waiting = CODE, True, "", 0
    wanted: list[Seen] = []
    for piece in pieces:
        at += len(piece) // 2
        wanted += [(*each, 0) for each in access[piece]]
        waiting += len(access[piece])
        shadow = (piece == "fb" and not flag) or (piece == MOV_SS and last != MOV_SS)
        last = piece if shadow else ""
        flag = piece == "fb" or (flag and piece != "fa")
        if flag and not shadow:
            wanted += [("out", IN_INTR, at)] * waiting
            waiting = 0
    with Guest(backend, mode, "".join(pieces)) as guest:
        for place in (("in", RAISE), ("out", RAISE), ("load", HOLE), ("store", HOLE)):
            guest.on[place] = lambda: guest.raise_(INTR)
        exit = guest.go() if inline else guest.run()
        while exit != Halt():
            answer(guest, exit)
            exit = guest.run()
        assert guest.seen == wanted
        assert not guest.pending_vectors


@BOTH
def test_a_stop_while_an_interrupt_waits_shows_no_trace_of_it(backend: kvm.KvmBackend, mode: str) -> None:
    with Guest(backend, mode, "fa" + out(RAISE) + "90 90" + out(MAIN)) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        guest.on["out", MAIN] = lambda: guest.vcpu.stop_here(Cancelled())
        assert guest.go() == Cancelled()
        state = guest.vcpu.state()
        assert not state.rflags & 0x100
        assert (state.dr, state.dr7) == ([0] * 4, 0x400)
        assert guest.acknowledged == []


@BOTH
def test_inexact_interrupts_come_with_the_next_access_at_the_latest(
    backend: kvm.KvmBackend, mode: str
) -> None:
    options = VmOptions(exact_interrupts=False)
    code = "fa" + out(RAISE) + "90 fb 90 90" + out(MAIN) + "90 f4" + out(MAIN)
    with Guest(backend, mode, code, options=options) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR, INTR, OTHER)
        assert guest.go() == Halt()
        assert guest.go() == Halt()
        kinds = [what[:2] for what in guest.seen]
        assert kinds.count(("out", IN_INTR)) == 2
        assert kinds.count(("out", IN_OTHER)) == 1
        assert kinds.index(("out", IN_INTR)) <= kinds.index(("out", MAIN)) + 1
        assert guest.pending_vectors == []


@BOTH
@pytest.mark.parametrize("exact", [True, False])
def test_interrupts_from_another_thread_are_none_lost_and_none_double(
    backend: kvm.KvmBackend, mode: str, exact: bool
) -> None:
    """The window is open for a few instructions of the loop, and never at its exit."""
    # again: CLI; IN; STI; NOP; NOP; JMP again
    with Guest(backend, mode, "fa e430 fb 90 90 ebf8", options=VmOptions(exact_interrupts=exact)) as guest:
        raised = 200

        def raiser() -> None:
            for _ in range(raised):
                guest.raise_(INTR)
                time.sleep(0.0002)

        def count() -> None:
            if len(guest.acknowledged) == raised:
                guest.vcpu.stop_here(Cancelled())

        guest.on["out", IN_INTR] = count
        thread = threading.Thread(target=raiser)
        thread.start()
        assert guest.go() == Cancelled()
        thread.join()
        taken = [ip for what, port, ip in guest.seen if (what, port) == ("out", IN_INTR)]
        assert len(taken) == raised
        # behind IN there is CLI's effect, behind STI its shadow
        assert set(taken) <= {CODE, CODE + 5, CODE + 6}


@BOTH
@pytest.mark.parametrize("first", ["f4", ""])
def test_a_handler_may_begin_with_hlt_or_iret(backend: kvm.KvmBackend, mode: str, first: str) -> None:
    iret = "cf" if mode == "real" else "48cf"
    with Guest(backend, mode, out(RAISE) + out(MAIN)) as guest:
        guest.memory.write(HANDLERS + 16 * INTR, bytes.fromhex(first + iret))
        guest.on["out", RAISE] = lambda: guest.raise_(INTR, OTHER)
        exits = [guest.go() for _ in range(2 if first else 1)]
        assert exits == [Halt()] * len(exits)
        assert guest.seen == [("out", RAISE, 0), ("out", IN_OTHER, CODE + 2), ("out", MAIN, 0)]


def test_protected_mode_takes_interrupts(backend: kvm.KvmBackend) -> None:
    gate = (HANDLERS + 16 * INTR) | 0x8E00 << 32 | 0x08 << 16

    with Guest(backend, "real", "90") as real, Bench(backend, "p32", bytes.fromhex("90 90 90")) as bench:
        state = bench.vcpu.state()
        gate = gate & ~(0xFFFF << 16) | state.cs.selector << 16
        bench.memory.write(IDT + 8 * INTR, gate.to_bytes(8, "little"))
        bench.memory.write(HANDLERS + 16 * INTR, bytes.fromhex(out(IN_INTR)))
        state.idt, state.rflags = Table(IDT, 0x7FF), 0x202
        bench.vcpu.set_state(state)
        bench.vcpu.connect(real)
        real.pending_vectors = [INTR]
        assert bench.run() == PortWrite(IN_INTR, 1, 0)
        assert int.from_bytes(bench.memory.read(STACK - 12, 4), "little") == CODE


USER = 0x2000


def give_user_code(guest: Guest) -> None:
    """A loop at USER that CPL 3 may run, and at 0x6000 what IRETQ takes to go there (the
    selectors of cpu.modes)."""
    frame = (USER, 0x33, 0x202, STACK - 0x800, 0x2B)
    guest.memory.write(0x6000, b"".join(value.to_bytes(8, "little") for value in frame))
    guest.memory.write(USER, bytes.fromhex("ebfe"))
    for entry in range(layout.BOOT_PAGE_TABLES, layout.BOOT_TSS, 8):
        low = guest.memory.read(entry, 1)[0]
        guest.memory.write(entry, bytes([low | 4 * (low & 1)]))  # U/S where P is


def test_an_interrupt_that_waits_is_taken_at_the_first_boundary_of_user_code(backend: kvm.KvmBackend) -> None:
    # CLI; OUT; MOV ESP, 0x6000; IRETQ to a loop at CPL 3
    with Guest(backend, "l64", "fa" + out(RAISE) + "bc00600000 48cf") as guest:
        give_user_code(guest)
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        guest.on["out", IN_INTR] = lambda: guest.vcpu.stop_here(Cancelled())
        assert guest.go() == Cancelled()
        assert [what[:2] for what in guest.seen] == [("out", RAISE), ("out", IN_INTR)]
        assert int.from_bytes(guest.memory.read(guest.vcpu.registers().rsp, 8), "little") == USER


def test_user_code_is_interrupted_from_another_thread(backend: kvm.KvmBackend) -> None:
    with Guest(backend, "l64", "bc00600000 48cf") as guest:
        give_user_code(guest)
        guest.on["out", IN_INTR] = lambda: guest.vcpu.stop_here(Cancelled())
        for turn in range(1, 11):
            with later(0.01, lambda: guest.raise_(INTR, OTHER)):
                assert guest.go() == Cancelled()
            assert len(guest.acknowledged) >= turn


# -- CR8


def test_the_guests_cr8_is_told_before_its_next_access(backend: kvm.KvmBackend) -> None:
    # MOV EAX, 5; MOV CR8, RAX; OUT; MOV EAX, 3; MOV CR8, RAX; OUT
    code = "b805000000 440f22c0" + out(MAIN) + "b803000000 440f22c0" + out(MAIN)
    with Guest(backend, "l64", code) as guest:
        told: list[list[int]] = []
        guest.on["out", MAIN] = lambda: told.append(list(guest.cr8))
        assert guest.go() == Halt()
        assert told == [[5], [5, 3]]
        assert guest.vcpu.state().cr8 == 3


def test_cr8_set_by_the_controller_is_what_the_guest_reads(backend: kvm.KvmBackend) -> None:
    # OUT; MOV RAX, CR8
    with Guest(backend, "l64", out(RAISE) + "440f20c0") as guest:
        guest.on["out", RAISE] = lambda: guest.vcpu.set_cr8(9)
        assert guest.go() == Halt()
        assert guest.vcpu.registers().rax == 9
        assert guest.vcpu.state().cr8 == 9
        assert guest.cr8 == []
        guest.vcpu.set_cr8(4)
        state = guest.vcpu.state()
        assert state.cr8 == 4
        state.cr8 = 7
        guest.vcpu.set_state(state)
        assert guest.vcpu.state().cr8 == 7
        assert guest.cr8 == []
        with pytest.raises(UsageError, match="not a task priority"):
            guest.vcpu.set_cr8(16)


def test_an_interrupt_waits_for_a_lower_cr8(backend: kvm.KvmBackend) -> None:
    # MOV EAX, 5; MOV CR8, RAX; OUT (raises, priority 2); OUT; XOR EAX, EAX; MOV CR8, RAX; NOP; OUT
    code = "b805000000 440f22c0" + out(RAISE) + out(MAIN) + "31c0 440f22c0 90" + out(MAIN)
    with Guest(backend, "l64", code) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        assert guest.go() == Halt()
        assert guest.seen[:2] == [("out", RAISE, 0), ("out", MAIN, 0)]
        behind = CODE + 9 + 4 + 6
        if backend.late_windows:  # this KVM makes no exit of MOV to CR8
            assert guest.seen[2:] == [("out", MAIN, 0), ("out", IN_INTR, behind + 3)]
        else:
            assert guest.seen[2:] == [("out", IN_INTR, behind), ("out", MAIN, 0)]


def test_a_lower_cr8_is_noticed_in_a_guest_that_makes_no_exit(backend: kvm.KvmBackend) -> None:
    code = "b805000000 440f22c0" + out(RAISE) + "31c0 440f22c0 ebfe"
    with Guest(backend, "l64", code) as guest:
        guest.on["out", RAISE] = lambda: guest.raise_(INTR)
        guest.on["out", IN_INTR] = lambda: guest.vcpu.stop_here(Cancelled())
        assert guest.go() == Cancelled()


# -- MSRs

APIC_BASE, X2APIC_ICR, UNKNOWN_MSR = 0x1B, 0x830, 0x5000
MSRS = VmOptions(msrs=((APIC_BASE, 1), (0x800, 0x100), (0x10000, 0x6001)))
RDMSR, WRMSR = "0f32", "0f30"


def mov_ecx(value: int) -> str:
    return "b9" + value.to_bytes(4, "little").hex()


@pytest.mark.parametrize("index", [APIC_BASE, X2APIC_ICR, 0x16000])
def test_the_platforms_msrs_are_read_and_written(backend: kvm.KvmBackend, index: int) -> None:
    code = mov_ecx(index) + RDMSR + "ffc0" + WRMSR  # INC EAX between
    with Guest(backend, "l64", code, options=MSRS) as guest:
        guest.msrs[index] = 0x1234_5678_9ABC_DEF0
        assert guest.go() == Halt()
        assert guest.seen == [("rdmsr", index, 0), ("wrmsr", index, 0)]
        assert guest.msrs[index] == 0x1234_5678_9ABC_DEF1


@pytest.mark.parametrize("index", [APIC_BASE, X2APIC_ICR])
@pytest.mark.parametrize("how", [RDMSR, WRMSR])
def test_an_msr_that_the_platform_refuses_is_gp(backend: kvm.KvmBackend, how: str, index: int) -> None:
    with Guest(backend, "l64", mov_ecx(index) + how, options=MSRS) as guest:
        guest.on["out", IN_GP] = lambda: None
        assert guest.go() == Halt()
        verb = "rdmsr" if how == RDMSR else "wrmsr"
        assert [what[:2] for what in guest.seen] == [(verb, index), ("out", IN_GP)]
        at, _ = FRAME["l64"]  # the error code is below the frame: it is 0
        assert guest.memory.read(at - 8, 8) == bytes(8)
        assert int.from_bytes(guest.memory.read(at, 8), "little") == CODE + 5


@pytest.mark.parametrize("options", [VmOptions(), MSRS])
def test_an_msr_of_nobody_is_gp(backend: kvm.KvmBackend, options: VmOptions) -> None:
    with Guest(backend, "l64", mov_ecx(UNKNOWN_MSR) + RDMSR, options=options) as guest:
        assert guest.go() == Halt()
        assert [what[:2] for what in guest.seen] == [("out", IN_GP)]


def test_kvms_own_msrs_stay_kvms(backend: kvm.KvmBackend) -> None:
    with Guest(backend, "l64", mov_ecx(0xC0000080) + RDMSR, options=MSRS) as guest:
        assert guest.go() == Halt()
        assert guest.seen == []
        assert guest.vcpu.registers().rax == guest.vcpu.state().efer


def test_run_shows_msrs_as_exits_that_are_answered(backend: kvm.KvmBackend) -> None:
    code = mov_ecx(APIC_BASE) + RDMSR + WRMSR + out(MAIN)
    with Guest(backend, "l64", code, options=MSRS, rbx=7) as guest:
        read = guest.run()
        assert read == MsrRead(APIC_BASE, 8)
        with pytest.raises(UsageError, match="not answered"):
            guest.run()
        assert isinstance(read, MsrRead)
        read.reply(0x5_0000_0006)
        assert guest.rip == CODE + 7
        written = guest.run()
        assert written == MsrWrite(APIC_BASE, 8, 0x5_0000_0006)
        assert isinstance(written, MsrWrite)
        assert guest.rip == CODE + 7
        with pytest.raises(UsageError, match="middle of an instruction"):
            guest.set(rax=1)
        with pytest.raises(UsageError, match="not answered"):
            guest.run()
        written.reply()
        assert guest.rip == CODE + 9
        assert isinstance(guest.run(), PortWrite)


@pytest.mark.parametrize("how", [RDMSR, WRMSR])
def test_run_answers_an_msr_with_gp(backend: kvm.KvmBackend, how: str) -> None:
    with Guest(backend, "l64", mov_ecx(APIC_BASE) + how, options=MSRS) as guest:
        exit = guest.run()
        assert isinstance(exit, MsrRead | MsrWrite)
        exit.fault()
        with pytest.raises(UsageError, match="answered already"):
            exit.fault()
        assert guest.run() == PortWrite(IN_GP, 1, 0)


@pytest.mark.parametrize("how", [RDMSR, WRMSR])
def test_a_handler_that_raises_at_an_msr_leaves_the_vcpu_behind_it(backend: kvm.KvmBackend, how: str) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    with Guest(backend, "l64", mov_ecx(APIC_BASE) + how, options=MSRS) as guest:
        guest.on["rdmsr", APIC_BASE] = guest.on["wrmsr", APIC_BASE] = fail
        with pytest.raises(RuntimeError, match="broken"):
            guest.go()
        assert guest.rip == CODE + 7
        assert guest.go() == Halt()
        if how == RDMSR:
            assert guest.vcpu.registers().rax == 0xFFFF_FFFF


def test_an_interrupt_raised_by_an_msr_is_taken_behind_it(backend: kvm.KvmBackend) -> None:
    with Guest(backend, "l64", mov_ecx(X2APIC_ICR) + WRMSR + out(MAIN), options=MSRS) as guest:
        guest.msrs[X2APIC_ICR] = 0
        guest.on["wrmsr", X2APIC_ICR] = lambda: guest.raise_(INTR)
        assert guest.go() == Halt()
        assert guest.seen[1:] == [("out", IN_INTR, CODE + 7), ("out", MAIN, 0)]


@pytest.mark.parametrize("ranges", [((0x1B, 0),), ((-1, 2),), ((0xFFFFFFFF, 2),), ((0, 0x3000 * 17),)])
def test_ranges_of_msrs_that_are_none_are_a_usage_error(
    backend: kvm.KvmBackend, ranges: tuple[tuple[int, int], ...]
) -> None:
    with pytest.raises(UsageError):
        backend.create_vm(VmOptions(msrs=ranges))


def test_the_filter_covers_the_ranges_and_nothing_else() -> None:
    native, _bitmap = kvm_msrs.msr_filter(((0x1B, 1), (0x10000, 0x6001)))
    ranges = [(r.base, r.nmsrs, r.flags) for r in native.ranges if r.nmsrs]
    assert ranges == [(0x1B, 1, 3), (0x10000, 0x3000, 3), (0x13000, 0x3000, 3), (0x16000, 1, 3)]
    assert kvm_msrs.exit_reasons(((0x1B, 1), (0x7FF, 1), (0x900, 1))) == 4
    assert kvm_msrs.exit_reasons(((0x8FF, 1),)) == 7


# -- several vCPUs


def test_two_vcpus_in_two_threads_lose_no_locked_increment(backend: kvm.KvmBackend) -> None:
    # again: LOCK INC dword [0x5000]; DEC CX; JNZ again; HLT
    rounds = 20_000
    memory = GuestMemory()
    memory.add(0, 1 << 20)
    memory.write(0x1000, bytes.fromhex("66f0ff060050 49 75f7 f4"))
    vm = backend.create_vm(VmOptions(vcpus=2))
    try:
        memory.attach(vm, lambda: None)
        vcpus = [vm.create_vcpu() for _ in range(2)]
        for vcpu in vcpus:
            state = CpuState(rip=0x1000, rcx=rounds, rsp=0x7C00)
            state.cs = Segment(0, 0, 0xFFFF, 0x9B)
            vcpu.set_state(state)
        exits: list[Exit] = []
        threads = [threading.Thread(target=lambda v=vcpu: exits.append(v.run())) for vcpu in vcpus]
        for thread in threads:
            thread.start()
        time.sleep(0.002)
        with pytest.raises(UsageError, match="running"):
            vm.close()
        for thread in threads:
            thread.join(time_limit(30))
        assert exits == [Halt(), Halt()]
        assert int.from_bytes(memory.read(0x5000, 4), "little") == 2 * rounds
    finally:
        vm.close()
        memory.close()


@pytest.mark.parametrize("apic", [False, True])
def test_each_vcpu_sees_its_own_cpuid(backend: kvm.KvmBackend, apic: bool) -> None:
    memory = GuestMemory()
    memory.add(0, 1 << 20)
    memory.write(0x1000, bytes.fromhex("0fa2 f4"))  # CPUID; HLT
    vm = backend.create_vm(VmOptions(vcpus=3, apic=apic))
    try:
        memory.attach(vm, lambda: None)
        for number in range(3):
            vcpu = vm.create_vcpu()
            own = table(apic, number, 3)
            for leaf, subleaf in ((0, 0), (1, 0), (0xB, 0), (0xB, 1), (0xB, 2), (0x80000008, 0)):
                state = CpuState(rip=0x1000, rax=leaf, rcx=subleaf)
                state.cs = Segment(0, 0, 0xFFFF, 0x9B)
                vcpu.set_state(state)
                assert vcpu.run() == Halt()
                got = vcpu.registers()
                wanted = cpuid(leaf, subleaf, table=own)
                if leaf == 1 or (leaf == 0xB and not apic):
                    assert (got.rax, got.rbx) == wanted[:2]
                else:
                    assert (got.rax, got.rbx, got.rcx, got.rdx) == wanted
    finally:
        vm.close()
        memory.close()


def test_the_topology_says_one_package_and_a_thread_a_core() -> None:
    # SDM vol. 3, 8.9.4: the id shifted right by the last level's width is the package.
    tables = [table(True, number, 5) for number in range(5)]
    for number, own in enumerate(tables):
        eax, ebx, ecx, edx = cpuid(0xB, 0, table=own)
        assert (eax, ebx, ecx, edx) == (0, 1, 0x100, number)
        eax, ebx, ecx, edx = cpuid(0xB, 1, table=own)
        assert (ebx, ecx, edx) == (5, 0x201, number)
        assert edx >> eax == 0
        assert cpuid(0xB, 2, table=own) == (0, 0, 2, number)
        eax, ebx, ecx, edx = cpuid(1, table=own)
        assert ebx >> 24 == number
        assert ebx >> 16 & 0xFF == 8
        assert edx & (1 << 9 | 1 << 28) == 1 << 9 | 1 << 28
        assert ecx & (1 << 21 | 1 << 24) == 1 << 21
    assert not cpuid(1, table=table(True))[3] >> 28 & 1
    assert table(False) == TABLE
    assert not TABLE[1, 0][3] >> 9 & 1


@pytest.mark.parametrize("vcpus", [0, 1_000_000])
def test_a_number_of_vcpus_that_kvm_does_not_make_is_a_usage_error(
    backend: kvm.KvmBackend, vcpus: int
) -> None:
    with pytest.raises(UsageError, match="vCPUs here"):
        backend.create_vm(VmOptions(vcpus=vcpus))


# -- VMX without unrestricted guest


def test_the_addresses_that_kvm_needs_on_old_intel_cpus_are_set_aside(
    backend: kvm.KvmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "needs_reserved", lambda: True)
    assert kvm.RESERVED.stop <= 0xFF00_0000  # the 16 MiB above are for ROMs
    memory = GuestMemory()
    memory.add(kvm.RESERVED.stop - 0x1000, 0x2000)
    vm = backend.create_vm()
    with pytest.raises(NotSupported, match="KVM itself uses"):
        memory.attach(vm, lambda: None)
    vm.close()
    memory.close()
    with Guest(backend, "real", out(MAIN)) as guest:
        assert guest.go() == Halt()
        assert guest.seen == [("out", MAIN, 0)]


def test_doctor_says_what_matters_for_interrupts(backend: kvm.KvmBackend) -> None:
    found = dict(backend.doctor())
    assert "injected by vmmsim" in found["kvm interrupts"]
    assert ("IRET" in found["kvm interrupts"]) == ("IRET in protected mode" in backend.capabilities.refuses)
    assert found["kvm MSRs"]
