"""Machine: building, running, stopping, inspecting; on every backend unless it never runs."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vmmsim import Machine, MachineConfig, budget
from vmmsim.backends import open_backend
from vmmsim.backends.base import Backend
from vmmsim.errors import (
    BackendUnavailable,
    DeviceError,
    GuestError,
    ImageError,
    ImageNotFound,
    NotSupported,
    UsageError,
)
from vmmsim.exits import (
    Access,
    BudgetSpent,
    Cancelled,
    Exit,
    GuestExit,
    Halt,
    MmioRead,
    MmioWrite,
    PortRead,
    PortWrite,
    Shutdown,
)
from vmmsim.loaders.flat import load_flat
from vmmsim.testing.slow import time_limit

#: out 0xe9, al; inc al; jmp to the start: prints for ever.
PRINT_FOR_EVER = bytes.fromhex("e6e9fec0ebfa")
SPIN = bytes.fromhex("ebfe")
#: in al, 0x60; mov al, [0xD000]; mov [0xD001], al; out 0x61, al; hlt (16 bits).
FOUR_ACCESSES = bytes.fromhex("e460a000d0a201d0e661f4")


class Recorder:
    """A device that answers `value` and keeps what it is given."""

    widths = frozenset({1, 2, 4, 8})

    def __init__(self, value: int = 0x5A) -> None:
        self.value = value
        self.log: list[tuple[str, int, int, int]] = []

    def read(self, offset: int, size: int, /) -> int:
        self.log.append(("r", offset, size, self.value))
        return self.value

    def write(self, offset: int, size: int, value: int, /) -> None:
        self.log.append(("w", offset, size, value))


class Broken(Recorder):
    def read(self, offset: int, size: int, /) -> int:
        raise RuntimeError("no such register")

    def write(self, offset: int, size: int, value: int, /) -> None:
        raise RuntimeError("stuck")


def machine_with(code: bytes, backend: str, **fields: object) -> Machine:
    machine = Machine(backend=backend, memory=0xD000, **fields)  # type: ignore[arg-type]
    machine.load(load_flat(code, name="test", load_address=0x7C00, mode="real", entry=0x7C00))
    return machine


@pytest.fixture
def machine(backend_name: str) -> Iterator[Machine]:
    """A bare machine with the guest of four accesses and a device at each end of them."""
    with machine_with(FOUR_ACCESSES, backend_name) as made:
        made.attach_port(0x60, 2, Recorder(0x11), "keyboard")
        made.attach_mmio(0xD000, 0x10, Recorder(0x22), "buffer")
        yield made


ACCESSES: list[tuple[type[Access], int, int, int]] = [
    (PortRead, 0x60, 1, 0x11),
    (MmioRead, 0xD000, 1, 0x22),
    (MmioWrite, 0xD001, 1, 0x22),
    (PortWrite, 0x61, 1, 0x22),
]


# -- run


def test_run_answers_by_devices_and_ends_at_hlt(machine: Machine) -> None:
    exit = machine.run()
    assert exit == Halt()
    assert machine.last_exit is exit
    assert machine.devices["keyboard"].log == [("r", 0, 1, 0x11), ("w", 1, 1, 0x22)]  # type: ignore[attr-defined]
    assert machine.devices["buffer"].log == [("r", 0, 1, 0x22), ("w", 1, 1, 0x22)]  # type: ignore[attr-defined]
    assert machine.cpu.rip == 0x7C00 + len(FOUR_ACCESSES)
    assert machine.counts() == {"port_read": 1, "mmio_read": 1, "mmio_write": 1, "port_write": 1, "halt": 1}


@pytest.mark.parametrize(
    ("until", "which", "rip"),
    [(PortRead, 0, 2), (MmioWrite, 2, 8), ((MmioRead, PortWrite), 1, 5), (PortWrite, 3, 10)],
    ids=["port read", "mmio write", "either", "port write"],
)
def test_until_a_kind_of_exit_stops_behind_its_instruction(
    machine: Machine, until: type[Exit] | tuple[type[Exit], ...], which: int, rip: int
) -> None:
    exit = machine.run(until=until)
    cls, address, size, value = ACCESSES[which]
    assert type(exit) is cls
    assert isinstance(exit, Access)
    assert (exit.address, exit.size, exit.value) == (address, size, value)  # type: ignore[attr-defined]
    assert machine.cpu.rip == 0x7C00 + rip
    assert machine.run() == Halt()


def test_until_a_predicate_sees_the_answered_exit(machine: Machine) -> None:
    seen: list[Exit] = []

    def enough(exit: Exit) -> bool:
        seen.append(exit)
        return getattr(exit, "value", 0) == 0x22

    exit = machine.run(until=enough)
    assert isinstance(exit, MmioRead)
    assert len(seen) == 2
    assert machine.run(until=lambda exit: False) == Halt()


def test_observers_are_told_each_access_once_in_order(machine: Machine) -> None:
    seen: list[tuple[type[Access], int, int, int]] = []
    forget = machine.observe(lambda *access: seen.append(access))
    machine.run()
    assert seen == ACCESSES
    forget()
    machine.cpu.rip = 0x7C00
    machine.run()
    assert len(seen) == 4


def test_history_has_the_last_32_accesses(backend_name: str) -> None:
    with machine_with(PRINT_FOR_EVER, backend_name) as machine:
        machine.run(budget=budget.exits(100))
        assert len(machine.accesses.history) == 32
        assert machine.accesses.history[-1][3] == 99


# -- budgets


def test_a_budget_of_exits_is_exact(backend_name: str) -> None:
    with machine_with(PRINT_FOR_EVER, backend_name) as machine:
        for number in range(1, 4):
            exit = machine.run(budget=budget.exits(7))
            assert exit == BudgetSpent("exits", 7)
            assert machine.output.data == bytes(range(7 * number))
            assert machine.cpu.rip == 0x7C02


def test_a_budget_of_seconds_ends_a_spin(backend_name: str) -> None:
    with machine_with(SPIN, backend_name) as machine:
        began = time.perf_counter()
        exit = machine.run(budget=budget.seconds(0.2))
        assert exit == BudgetSpent("seconds", 0.2)
        assert 0.15 < time.perf_counter() - began < time_limit(2)
        assert machine.cpu.rip == 0x7C00


def test_a_budget_that_is_not_spent_leaves_nothing_behind(machine: Machine) -> None:
    assert machine.run(budget=(budget.seconds(0.05), budget.exits(50))) == Halt()
    time.sleep(0.1)
    machine.cpu.rip = 0x7C00
    assert machine.run() == Halt()


def test_a_budget_of_instructions_is_exact_or_not_supported(backend_name: str, backend: Backend) -> None:
    with machine_with(PRINT_FOR_EVER, backend_name) as machine:
        if not backend.capabilities.insn_budget:
            with pytest.raises(NotSupported):
                machine.run(budget=budget.insns(7))
            return
        assert machine.run(budget=budget.insns(7)) == BudgetSpent("insns", 7)
        # OUT, INC, JMP, twice, and one OUT.
        assert machine.output.data == b"\0\1\2"
        assert machine.cpu.rip == 0x7C02


def test_the_first_of_several_budgets_ends_the_run(backend_name: str) -> None:
    with machine_with(PRINT_FOR_EVER, backend_name) as machine:
        assert machine.run(budget=(budget.exits(3), budget.seconds(time_limit(20)))) == BudgetSpent(
            "exits", 3
        )


@pytest.mark.parametrize("make", [budget.insns, budget.exits, budget.seconds])
@pytest.mark.parametrize("amount", [0, -1, None, "5", True], ids=str)
def test_budgets_are_positive_numbers(make: object, amount: object) -> None:
    with pytest.raises(UsageError, match="a budget of"):
        make(amount)  # type: ignore[operator]


@pytest.mark.parametrize("make", [budget.insns, budget.exits])
def test_instructions_and_exits_come_whole(make: object) -> None:
    with pytest.raises(UsageError, match="whole number"):
        make(1.5)  # type: ignore[operator]
    assert budget.seconds(1.5).amount == 1.5


def test_the_guests_own_end_comes_before_a_budget_that_is_spent_by_it(backend_name: str) -> None:
    with machine_with(bytes.fromhex("b005e6f4f4"), backend_name) as machine:  # mov al, 5; out 0xf4, al
        assert machine.run(budget=budget.exits(1)) == GuestExit(5)


def test_the_end_of_the_time_does_not_reach_into_the_next_run(backend_name: str) -> None:
    with machine_with(b"\xf4" * 200, backend_name) as machine:
        for _ in range(50):
            assert isinstance(machine.run(budget=budget.seconds(0.0002)), (Halt, BudgetSpent))
            assert machine.run() == Halt()


# -- one exit at a time


def test_exits_shows_each_exit_and_lets_the_devices_answer(machine: Machine) -> None:
    seen = list(machine.exits())
    assert [type(exit) for exit in seen] == [*(cls for cls, *_ in ACCESSES), Halt]
    assert machine.devices["keyboard"].log == [("r", 0, 1, 0x11), ("w", 1, 1, 0x22)]  # type: ignore[attr-defined]
    assert [exit.value for exit in seen[:4]] == [value for *_, value in ACCESSES]  # type: ignore[attr-defined]


def test_what_the_caller_answers_no_device_sees(machine: Machine) -> None:
    for exit in machine.exits():
        if isinstance(exit, (PortRead, MmioRead)):
            exit.reply(0x77)
        elif isinstance(exit, MmioWrite):
            assert exit.value == 0x77
            exit.reply()
    assert machine.devices["buffer"].log == []  # type: ignore[attr-defined]
    assert machine.devices["keyboard"].log == [("w", 1, 1, 0x77)]  # type: ignore[attr-defined]
    assert machine.cpu.rax & 0xFF == 0x77


def test_the_loop_of_exits_can_be_left_and_taken_up(machine: Machine) -> None:
    for exit in machine.exits():
        if isinstance(exit, MmioRead):
            exit.reply(0x33)
            break
    assert machine.run() == Halt()
    assert machine.devices["buffer"].log == [("w", 1, 1, 0x33)]  # type: ignore[attr-defined]


def test_step_exit_wants_its_answer(machine: Machine) -> None:
    exit = machine.step_exit()
    assert isinstance(exit, PortRead)
    with pytest.raises(UsageError, match=r"was not answered \(call exit\.reply\(value\), or machine\.answer"):
        machine.step_exit()
    assert machine.answer(exit) is None
    assert exit.value == 0x11
    assert isinstance(machine.step_exit(), MmioRead)


def test_exits_ends_when_a_device_ends_the_machine(backend_name: str) -> None:
    # mov al, 3; out 0xf4, al; hlt
    with machine_with(bytes.fromhex("b003e6f4f4"), backend_name) as machine:
        assert [exit.kind for exit in machine.exits()] == ["port_write", "guest_exit"]
        assert machine.last_exit == GuestExit(3)
        machine.cpu.rip = 0x7C00
        assert machine.run() == GuestExit(3)
        assert machine.cpu.rip == 0x7C04


# -- observers


def test_an_observer_that_goes_during_a_run_takes_no_other_along(machine: Machine) -> None:
    remove = machine.observe(lambda *access: remove())
    assert isinstance(machine.run(until=MmioRead), MmioRead)
    # The run's own observer is gone too: nothing ends this one but the guest.
    machine.cpu.rip = 0x7C00
    assert machine.run() == Halt()


def test_an_error_of_an_observer_is_not_put_on_a_device(machine: Machine) -> None:
    machine.attach_port(0x70, 1, Broken(), "broken")
    with pytest.raises(RuntimeError):
        machine.accesses.port_read(0x70, 1)  # what failed before this run has no part in it

    def observer(*access: object) -> None:
        raise ZeroDivisionError

    machine.observe(observer)
    with pytest.raises(ZeroDivisionError) as caught:
        machine.run()
    assert caught.value.__cause__ is None


# -- devices that fail


@pytest.mark.parametrize(
    ("port", "what", "rip", "rax"),
    [
        (0x60, "a 1-byte read at port 0x0060", 2, 0xFF),
        (0x61, "a 1-byte write at port 0x0061", 10, 0x22),
    ],
    ids=["read", "write"],
)
def test_a_device_that_raises_is_named_and_the_machine_can_be_inspected(
    backend_name: str, port: int, what: str, rip: int, rax: int
) -> None:
    with machine_with(FOUR_ACCESSES, backend_name) as machine:
        machine.attach_port(port, 1, Broken(), "broken")
        machine.attach_mmio(0xD000, 0x10, Recorder(0x22), "buffer")
        with pytest.raises(DeviceError) as caught:
            machine.run()
        error = caught.value
        assert (error.device, error.access, error.rip) == ("broken", what, 0x7C00 + rip)
        assert "'broken' raised RuntimeError" in str(error)
        assert isinstance(error.__cause__, RuntimeError)
        assert machine.cpu.state().rip == 0x7C00 + rip
        assert machine.cpu.rax & 0xFF == rax
        assert machine.memory.read(0x7C00, 2) == FOUR_ACCESSES[:2]
        assert machine.run() == Halt()


def test_a_device_that_raises_one_exit_at_a_time(backend_name: str) -> None:
    with machine_with(FOUR_ACCESSES, backend_name) as machine:
        machine.attach_port(0x60, 1, Broken(), "broken")
        loop = machine.exits()
        exit = next(loop)
        with pytest.raises(DeviceError, match="'broken' raised RuntimeError on a 1-byte read"):
            next(loop)
        assert isinstance(exit, PortRead)
        assert exit.value == 0xFF
        assert machine.run() == Halt()


@pytest.mark.parametrize("answer", [0x100, -1], ids=["too wide", "negative"])
def test_an_answer_that_does_not_fit_is_the_devices_error(backend_name: str, answer: int) -> None:
    with machine_with(FOUR_ACCESSES, backend_name) as machine:
        machine.attach_port(0x60, 1, Recorder(answer), "wide")
        with pytest.raises(DeviceError, match="does not answer a 1-byte read"):
            machine.run()


# -- cancel


def test_cancel_from_a_thread(backend_name: str) -> None:
    with machine_with(SPIN, backend_name) as machine:
        threading.Timer(0.05, machine.cancel).start()
        assert machine.run() == Cancelled()
        assert machine.cpu.rip == 0x7C00


def test_a_second_run_at_the_same_time_is_a_usage_error(backend_name: str) -> None:
    with machine_with(SPIN, backend_name) as machine:
        errors: list[BaseException] = []

        def second() -> None:
            try:
                machine.run()
            except UsageError as error:
                errors.append(error)
            machine.cancel()

        threading.Timer(0.05, second).start()
        assert machine.run() == Cancelled()
        assert "running already" in str(errors[0])


def test_a_guest_that_writes_a_hole_a_million_times_is_counted_and_stays_small(backend_name: str) -> None:
    # l: mov [bx], al with BX in the hole; inc bx; or bh, 0xd0; jmp l. 20,000 here: KVM is slow.
    with machine_with(bytes.fromhex("bb00d088074380cfd0ebf8"), backend_name) as machine:
        assert machine.run(budget=budget.exits(20_000)).kind == "budget"
        assert machine.mmio.unclaimed_writes == 20_000
        assert machine.counts()["mmio_write"] == 20_000
        assert sum(map(len, machine.mmio.writers)) <= 4096


_FORK = """
import os, signal, sys, threading
from vmmsim import Machine, budget
from vmmsim.loaders import load_bytes

def run(code, *limits):
    with Machine(backend=sys.argv[1], memory=1 << 20) as machine:
        machine.load(load_bytes(code))
        return machine.run(budget=limits).kind

run(b"\\xf4")
ready, tell = os.pipe()
child = os.fork()
if not child:
    threading.Timer(0.2, os.write, (tell, b".")).start()
    try:
        run(b"\\xeb\\xfe", budget.seconds(20))
        os._exit(1)
    except KeyboardInterrupt:
        os._exit(0)
threading.Thread(target=lambda: (os.read(ready, 1), os.kill(child, signal.SIGINT))).start()
ended = run(b"\\xeb\\xfe", budget.seconds(0.7))
sys.exit(f"parent: {ended}" if ended != "budget" else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system with fork()")
def test_ctrl_c_in_a_child_process_is_the_childs(backend_name: str) -> None:
    for _ in range(2):  # of two threads at one socket either can be the first
        command = [sys.executable, "-W", "ignore", "-c", _FORK, backend_name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=time_limit(50))
        assert (done.returncode, done.stderr) == (0, "")


def test_a_run_within_a_devices_answer_leaves_the_outer_run_its_signals(backend_name: str) -> None:
    class Inner(Recorder):
        def read(self, offset: int, size: int, /) -> int:
            with machine_with(b"\xf4", backend_name) as inner:
                assert inner.run() == Halt()
            return 0

    # in al, 0x60; then it spins.
    with machine_with(bytes.fromhex("e460ebfe"), backend_name) as machine:
        machine.attach_port(0x60, 1, Inner(), "inner")
        timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            machine.run(budget=budget.seconds(time_limit(10)))
        timer.join()
        assert machine.seconds < 5


# -- serial


def test_expect_and_send(backend_name: str) -> None:
    # l: mov dx, 0x3fd; in al, dx; test al, 1; jz l; mov dl, 0xf8; in al, dx; inc ax; out dx, al; jmp l
    echo = bytes.fromhex("bafd03eca80174f8b2f8ec40eeebf2")
    with machine_with(echo, backend_name) as machine:
        machine.serial.send(b"HAL")
        machine.serial.expect(b"IBM", timeout=time_limit(10))
        machine.serial.send(b"@")
        machine.serial.expect(b"A", timeout=time_limit(10))
        assert machine.output.data == b"IBMA"


def test_expect_says_when_the_machine_has_ended(backend_name: str) -> None:
    with machine_with(b"\xf4", backend_name) as machine, pytest.raises(GuestError, match="ended first: halt"):
        machine.serial.expect(b"login:", timeout=time_limit(5))


def test_expect_does_not_run_on_behind_the_end(backend_name: str) -> None:
    # mov al, 'A'; out 0xe9, al; hlt; inc al; out 0xe9, al; hlt
    code = bytes.fromhex("b041e6e9f4fec0e6e9f4")
    with machine_with(code, backend_name) as machine:
        assert isinstance(machine.run(), Halt)
        printed = machine.output.data
        with pytest.raises(GuestError, match="the machine has ended: halt"):
            machine.serial.expect(b"login:", timeout=time_limit(5))
        assert machine.output.data == printed == b"A"
        assert machine.serial.expect(b"A").group() == b"A"


def test_each_end_of_a_run_is_counted(backend_name: str) -> None:
    with machine_with(b"\xf4\xf4\xf4", backend_name) as machine:
        for _ in range(3):
            assert isinstance(machine.run(), Halt)
        assert machine.counts() == {"halt": 3}


# -- building


@pytest.mark.unicorn
def test_a_name_is_given_once_and_again_when_its_device_is_gone() -> None:
    with Machine(backend="unicorn", memory=1 << 20) as machine:
        lamp = machine.attach_port(0x200, 1, Recorder(), "lamp")
        for attach, at in ((machine.attach_port, 0x300), (machine.attach_mmio, 0x200000)):
            with pytest.raises(UsageError, match="has a device 'lamp' already"):
                attach(at, 1, Recorder(), "lamp")
        machine.detach(lamp)
        assert "lamp" not in machine.devices
        assert machine.ports.find(0x200) is None
        other = machine.attach_mmio(0x200000, 4, Recorder(), "lamp")
        machine.detach(other)
        assert machine.mmio.find(0x200000) is None
        with pytest.raises(UsageError, match="not on the MMIO bus"):
            machine.detach(other)


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"memory": "64M"}, "memory='64M' is a str; memory is an int", "64 << 20"),
        ({"memory": True}, "memory=True is a bool", "64 << 20"),
        ({"seed": "x"}, "seed='x' is a str; seed is an int or None", "whole number"),
        ({"without": "uart"}, "without is a tuple of str", "without=('uart',)"),
        ({"extra_devices": (1,)}, "extra_devices is a tuple of str", "extra_devices=("),
        ({"watchdog_seconds": "5"}, "watchdog_seconds is a number or None", "seconds"),
        ({"model": 3}, "model is a str", "MachineConfig"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(fields: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        MachineConfig(**fields)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.unicorn
def test_a_device_over_memory_is_refused_by_name() -> None:
    with Machine(backend="unicorn", memory=1 << 20) as machine:
        with pytest.raises(UsageError, match=r"lamp at 0xff000\.\.0xfffff overlaps <RAM"):
            machine.attach_mmio(0xFF000, 0x1000, Recorder(), "lamp")
        with pytest.raises(UsageError, match=r"lamp at 0x3fc\.\.0x3fc overlaps <uart"):
            machine.attach_port(0x3FC, 1, Recorder(), "lamp")
        assert "lamp" not in machine.devices


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory": 0}, "no memory"),
        ({"memory": 5000}, "not a multiple of 4 KiB"),
        ({"memory": 1 << 40}, "1 TiB is more than"),
        ({"model": "toaster"}, "no machine model 'toaster'"),
        ({"extra_devices": ("toaster",)}, "no device 'toaster'"),
        ({"without": ("toaster",)}, "no device 'toaster'"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.unicorn
def test_a_configuration_that_makes_no_machine(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Machine(backend="unicorn", **fields)  # type: ignore[arg-type]


def test_an_unknown_backend_names_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"no backend 'bochs' \(backends are: auto, kvm, unicorn"):
        Machine(backend="bochs")


def test_a_backend_asked_for_by_name_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmmsim.backends import backend_class
    from vmmsim.backends.base import Availability

    gone = Availability(usable=False, reason="/dev/kvm is not there", fix="modprobe kvm")
    monkeypatch.setattr(backend_class("kvm"), "availability", classmethod(lambda cls: gone))
    with pytest.raises(BackendUnavailable, match=r"'kvm' is not available: /dev/kvm is not there \(modprobe"):
        Machine(backend="kvm")
    opened, why = open_backend("auto")
    assert opened.name == "unicorn"
    assert "/dev/kvm is not there" in why


@pytest.mark.unicorn
def test_a_backend_can_be_given_opened() -> None:
    opened, _ = open_backend("unicorn")
    with Machine(backend=opened) as machine:
        assert machine.backend is opened
        assert machine.backend_choice == "unicorn (given)"


def test_memory_over_a_device_is_refused_by_name(backend_name: str) -> None:
    with Machine(backend=backend_name, memory=1 << 20) as machine:
        with pytest.raises(UsageError, match="overlaps the device <char-in"):
            machine.memory.add(0x1000, 0x1000)
        assert machine.memory.region_at(0x1000) is None


def test_an_image_over_the_usual_place_of_the_tables_stays_whole(backend_name: str) -> None:
    code = b"\xf4" * 0x100000
    with Machine(backend=backend_name, memory=4 << 20) as machine:
        machine.load(load_flat(code, name="large", load_address=0x7C00, mode="l64"))
        assert machine.memory.read(0x7C00, len(code)) == code
        assert machine.run() == Halt()
        assert machine.cpu.state().mode == "l64"


def test_an_image_whose_tables_do_not_fit_is_not_written(backend_name: str) -> None:
    with Machine(backend=backend_name, memory=128 << 10) as machine:
        with pytest.raises(ImageError, match="keeps its tables at"):
            machine.load(load_flat(b"\xf4", name="small", load_address=0x7C00, mode="p32"))
        assert machine.memory[0x7C00] == 0


def test_for_guest_makes_the_machine_that_the_guest_needs(backend_name: str) -> None:
    with Machine.for_guest("widths", backend=backend_name) as machine:
        assert "scratch" in machine.devices
        assert machine.run() == Halt()
    with Machine(backend=backend_name) as bare, pytest.raises(UsageError, match="needs the device scratch"):
        bare.load_guest("widths")


@pytest.mark.unicorn
def test_a_guest_that_does_not_exist() -> None:
    with pytest.raises(ImageNotFound, match="no guest 'nobody'"):
        Machine.for_guest("nobody", backend="unicorn")


def test_a_triple_fault_ends_the_run_and_shows_where(backend_name: str) -> None:
    with Machine.for_guest("fault", backend=backend_name) as machine:
        exit = machine.run()
        assert isinstance(exit, Shutdown)
        assert machine.cpu.rax == 0xDEAD
        assert machine.counts() == {"shutdown": 1}


# -- registers and memory


def test_registers_by_name(machine: Machine) -> None:
    machine.cpu.rbx = 0x1234
    machine.cpu.cr2 = 0x5678
    assert (machine.cpu.rbx, machine.cpu.cr2, machine.cpu.mode) == (0x1234, 0x5678, "real")
    state = machine.cpu.state()
    state.rcx = 9
    machine.cpu.load(state)
    assert machine.cpu.rcx == 9
    with pytest.raises(UsageError, match="no register 'rxx'"):
        machine.cpu.rxx = 1
    with pytest.raises(AttributeError):
        _ = machine.cpu.rxx


def test_seeds_make_chance_repeat(backend_name: str) -> None:
    # mov al, [0x1010] (a random letter); out 0xe9, al; jmp to the start
    code = bytes.fromhex("a01010e6e9ebf9")
    outputs = []
    for seed in (1, 1, 2):
        with machine_with(code, backend_name, seed=seed) as machine:
            machine.run(budget=budget.exits(40))
            outputs.append(machine.output.data)
    assert outputs[0] == outputs[1] != outputs[2]


# -- the end


def test_close_twice(backend_name: str) -> None:
    machine = Machine(backend=backend_name, memory=1 << 20)
    machine.close()
    machine.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.run(),
        lambda m: m.step_exit(),
        lambda m: m.cpu.rax,
        lambda m: m.cpu.state(),
        lambda m: setattr(m.cpu, "rax", 1),
        lambda m: m.vcpu.run(),
        lambda m: m.vcpu.read_msr(0xC0000080),
        lambda m: m.memory.read(0, 1),
        lambda m: m.memory.write(0, b"x"),
        lambda m: m.memory.add(1 << 30, 4096),
        lambda m: m.vm.create_vcpu(),
    ],
)
def test_a_closed_machine_says_so(backend_name: str, use: Callable[[Machine], object]) -> None:
    machine = Machine(backend=backend_name, memory=1 << 20)
    machine.close()
    with pytest.raises(UsageError, match="closed"):
        use(machine)
    machine.cancel()  # may come late, from another thread


@pytest.mark.kvm
def test_a_closed_machine_holds_no_file_until_it_is_collected() -> None:
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            Machine(backend="kvm", memory=1 << 20).close()
        with pytest.raises(UsageError):
            Machine(backend="kvm", memory=1 << 20, extra_devices=("nothing",))
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the signals' or the ticker's
    finally:
        gc.enable()


@pytest.mark.kvm
def test_a_backend_that_was_given_stays_open() -> None:
    backend, _ = open_backend("kvm")
    Machine(backend=backend, memory=1 << 20).close()
    Machine(backend=backend, memory=1 << 20).close()
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        Machine(backend=backend)


def test_a_hundred_machines_leave_nothing_behind(backend_name: str) -> None:
    def open_files() -> int:
        # A machine and its devices refer to each other; what the collector has yet to free is no leak.
        gc.collect()
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    threads = threading.active_count()
    before = 0
    for number in range(100):
        with machine_with(FOUR_ACCESSES, backend_name) as machine:
            assert machine.run() == Halt()
        if number == 10:
            before = open_files()
    assert open_files() <= before
    assert threading.active_count() <= threads + 1


def test_config_is_one_value(backend_name: str) -> None:
    config = MachineConfig(memory=2 << 20, seed=3)
    with Machine(config, backend=backend_name, memory=1 << 20) as machine:
        assert machine.config.memory == 1 << 20
        assert machine.config.seed == 3
        assert machine.memory.size == (1 << 20) - 0x1000
    assert config.memory == 2 << 20
