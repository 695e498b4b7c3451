"""Recording detailed traces: what they say is what the guest did, seen another way."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from trace_tools import reread

from vmmsim import Machine, guests
from vmmsim.budget import exits, seconds
from vmmsim.errors import DeviceError
from vmmsim.exits import Access, Exit, GuestExit, Halt, Shutdown
from vmmsim.loaders import load_bytes
from vmmsim.snapshot import cow
from vmmsim.snapshot.cheat import TimeMachine
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit
from vmmsim.trace import Code, Event, ExitRecord, Jump, Trace
from vmmsim.trace import recorder as recorder_module
from vmmsim.trace.looks import LookBudget, plain_state
from vmmsim.trace.recorder import TraceRecorder

HLT = "f4"


def guest(name: str, backend: str, **fields: Any) -> Machine:
    source = BytesSource(guests.load(name).input or b"")
    fields = {"seed": 1, "clock": "exits", **fields}
    return Machine.for_guest(name, backend=backend, source=source, **fields)


def real(code: str, backend: str, **fields: Any) -> Machine:
    """Real-mode code at 7C00h."""
    machine = Machine(backend=backend, memory=1 << 20, **fields)
    machine.load(load_bytes(bytes.fromhex(code), name="t", load_address=0x7C00, mode="real"))
    return machine


def record(machine: Machine, **options: Any) -> tuple[Trace, Exit]:
    """Run to the end; the trace keeps to all rules of the format."""
    recorder = TraceRecorder(machine, guest="t", **options)
    recorder.begin()
    end = machine.run(budget=seconds(time_limit(30)))
    trace = recorder.finish(end)
    assert reread(trace) == trace
    return trace, end


def here(trace: Trace, record: ExitRecord | Event) -> str:
    """The instruction of a record, "" where the trace does not know it."""
    for code in trace.records:
        if isinstance(code, Code) and code.id == record.code:
            return next(line.text for line in code.lines if line.linear == code.here)
    return ""


@pytest.mark.parametrize("name", ["guess", "hello64", "widths", "timer-long", "ring3", "faults-user"])
def test_a_trace_has_each_access_and_what_the_registers_were(name: str, backend_name: str) -> None:
    """Against the same run one exit at a time: at a read, before the instruction, all registers; at a
    write, behind it, RIP, which is how an exit shows it (docs/exits.md)."""
    with guest(name, backend_name) as machine:
        seen: list[tuple[type[Access], int, int, int]] = []
        machine.observe(lambda *access: seen.append(access))
        trace, end = record(machine)
        printed = machine.output.data
    assert [(r.exit_class, r.address, r.size, r.value) for r in trace.exits] == seen
    assert "".join(r.output for r in trace.exits).encode("latin-1") == printed
    assert trace.end is not None
    assert (trace.end.n, trace.end.kind, trace.end.cut) == (len(seen), end.kind, False)

    now = dict(trace.header.start)
    records = iter(r for r in trace.records if isinstance(r, ExitRecord | Event))
    with guest(name, backend_name) as machine:
        for exit in machine.exits():
            known = machine.vcpu.state()
            stop = None
            if isinstance(exit, Access):
                stop = machine.answer(exit)
            elif not isinstance(exit, Halt):
                break
            found = next(records)
            now |= found.regs
            assert (found.kind, found.rip, now["rip"]) == (exit.kind, known.rip, known.rip)
            for segment in ("cs", "ss"):
                assert now[segment] == getattr(known, segment).selector
                assert now[f"{segment}_base"] == getattr(known, segment).base
            assert (now["cr0"], now["cr3"], now["efer"]) == (known.cr0, known.cr3, known.efer)
            if not isinstance(found, ExitRecord) or not found.exit_class.is_write:
                names = [n for n in known.__struct_fields__[:18] if now[n] != getattr(known, n)]
                if name == "widths":
                    # CMPXCHG8B to MMIO: see tests/test_glance.py.
                    names = [n for n in names if n != "rflags" or now[n] ^ known.rflags != 0x10]
                assert not names
            if stop is not None:
                break
    assert next(records, None) is None


def test_the_instruction_of_an_exit(backend_name: str) -> None:
    """mov al, 7; out 0x80, al; in al, 0x60; mov [0xfff0:0], al (in a hole); hlt"""
    code = "b007 e680 e460 6800f0 1f a20000 f4".replace(" ", "")
    with real(code, backend_name) as machine:
        trace, _ = record(machine)
    texts = [here(trace, r) for r in trace.records if isinstance(r, ExitRecord | Event)]
    assert texts[:2] == ["out 0x80, al", "in al, 0x60"]
    assert texts[-1] == "hlt"
    window = next(r for r in trace.records if isinstance(r, Code))
    assert window.here == 0x7C02
    assert [line.code for line in window.lines][:2] == ["b007", "e680"]


def test_code_that_changes_itself_is_shown_as_it_was(backend_name: str) -> None:
    """again: out 0x80, al; inc byte [0x7c01]; dec cx; jnz again; hlt, three times: the port is the byte
    that is incremented."""
    code = "b90300 e680 fe06047c 49 75f7 f4".replace(" ", "")
    with real(code, backend_name) as machine:
        trace, _ = record(machine)
    assert [(r.address, here(trace, r)) for r in trace.exits] == [
        (port, f"out {port:#x}, al") for port in (0x80, 0x81, 0x82)
    ]


def test_devices_times_and_the_machine(backend_name: str) -> None:
    with guest("hello64", backend_name) as machine:
        trace, _ = record(machine)
    header = trace.header
    assert (header.guest, header.detailed, header.machine, header.clock) == ("t", True, "bare", "exits")
    assert {r.device for r in trace.exits} == {"uart", "debug-exit"}
    uart = next(device for device in header.devices if device.name == "uart")
    assert (uart.space, uart.start, uart.size, uart.chip) == ("port", 0x3F8, 8, "Uart16550")
    assert all(r.vmm_ns > 0 and r.guest_ns >= 0 for r in trace.exits)
    assert trace.exits[0].looked
    assert trace.exits[0].state["divisor"] == 12  # PC16550D: 9600 baud
    assert next(r for r in trace.exits if r.output).output == "H"


def test_nobody_answers_and_nobody_is_named(backend_name: str) -> None:
    with real("e480 f4".replace(" ", ""), backend_name) as machine:
        trace, _ = record(machine)
    assert [(r.device, r.value) for r in trace.exits] == [("", 0xFF)]


def test_interrupts_and_halts(backend_name: str) -> None:
    """timer-long ticks ten times by IRQ 0, at vector 20h (guests/timer-long), halted at first."""
    with guest("timer-long", backend_name) as machine:
        trace, end = record(machine)
    assert end == GuestExit(0)
    thens = ", ".join(r.then for r in trace.records if isinstance(r, ExitRecord | Event))
    assert thens.count("interrupt 0x20") == 10
    halts = [r for r in trace.records if isinstance(r, Event)]
    assert halts
    assert all(r.kind == "halt" and here(trace, r) == "hlt" for r in halts)


@pytest.mark.parametrize("way", ["page map", "no page map", "no C library", "over a snapshot"])
def test_memory_that_changed(way: str, backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """mov al, 0x41; mov [0x8000], al; mov [0x8002], al; out 0x80, al: one change, since the two are near.
    Then mov word [0x8fff], 0x4342, over the end of a page, and out; then nothing, and out."""
    code = "b041 a20080 a20280 e680 c706ff8f4243 e680 e680 f4".replace(" ", "")
    if way == "no page map":
        monkeypatch.setattr(cow, "_page_map", lambda address, size: None)
    elif way == "no C library":
        monkeypatch.setattr(ctypes, "PyDLL", _no_library)
    with real(code, backend_name) as machine:
        if way == "over a snapshot":
            machine.restore(machine.snapshot())
        trace, _ = record(machine)
    changes = [[(c.gpa, c.size, c.old, c.new) for c in r.memory] for r in trace.exits]
    assert changes == [
        [(0x8000, 3, "000000", "410041")],
        [(0x8FFF, 1, "00", "42"), (0x9000, 1, "00", "43")],
        [],
    ]


def _no_library(name: Any) -> Any:
    raise OSError("there is none")


def test_a_long_change_is_cut_and_many_are_told_by_pages(backend_name: str) -> None:
    """mov di, 0x8000; mov cx, 0x1000; rep stosb; out. Then a byte in every 16 of 64 KiB, and out."""
    code = "bf0080 b90010 b041 f3aa e680 6800201f 31ff b90010 c60501 83c710 49 75f7 e680 f4".replace(" ", "")
    with real(code, backend_name) as machine:
        trace, _ = record(machine)
    first, second = (r.memory for r in trace.exits)
    assert [(c.gpa, c.size, c.new) for c in first] == [(0x8000, 0x1000, "41" * 64)]
    assert {c.gpa >> 12 for c in second} >= set(range(0x20, 0x30))
    assert sum(c.size for c in second) >= 0xF000


def test_snapshots_and_going_back_are_jumps(backend_name: str) -> None:
    """guess, played by the alphabet, with the cheat: it is lost some times, and then won."""
    alphabet = bytes(range(97, 123)) * 2 + b"."
    manifest = guests.load("guess").manifest
    assert manifest.cheat is not None
    with Machine.for_guest("guess", backend=backend_name, source=BytesSource(alphabet), seed=3) as machine:
        recorder = TraceRecorder(machine, guest="guess")
        travel = TimeMachine(machine, begin=manifest.cheat.begin, lost=manifest.cheat.lost)
        trace = recorder.finish(machine.run(budget=seconds(time_limit(30))))
        printed = machine.output.data
    assert reread(trace) == trace
    jumps = [r for r in trace.records if isinstance(r, Jump)]
    backs = [r for r in jumps if r.what == "restore"]
    assert len(backs) == travel.times > 0
    first = jumps[0]
    assert (first.what, first.snapshot, first.to) == ("snapshot", 1, first.n)
    last = first
    for jump in jumps:
        if jump.what == "restore":
            assert (jump.snapshot, jump.to) == (last.snapshot, last.n)
        else:
            last = jump
    assert "".join(r.output for r in trace.exits).encode() == printed
    # Behind the restore the guest is where it was behind the snapshot.
    rips = {r.n: r.rip for r in trace.exits}
    assert all(rips[r.n + 1] == rips[r.to + 1] for r in backs)


def test_a_snapshot_from_before_the_trace_has_no_number(backend_name: str) -> None:
    with real("e680e680f4", backend_name) as machine:
        before = machine.snapshot()
        recorder = TraceRecorder(machine)
        machine.run()
        machine.restore(before)
        trace = recorder.finish(machine.run())
    assert reread(trace) == trace
    jump = next(r for r in trace.records if isinstance(r, Jump))
    assert (jump.n, jump.what, jump.snapshot, jump.to) == (2, "restore", 0, 0)
    assert jump.regs["rip"] == 0x7C00
    assert len(trace.exits) == 4


def test_behind_the_limit_nothing_is_recorded_and_the_guest_runs_on(backend_name: str) -> None:
    with guest("hello64", backend_name) as machine:
        before = machine.accesses.port_write
        recorder = TraceRecorder(machine, limit=10)
        end = machine.run(budget=seconds(time_limit(30)))
        trace = recorder.finish(end)
        assert machine.accesses.port_write is before
        printed = machine.output.data
    assert reread(trace) == trace
    assert trace.end is not None
    assert (len(trace.exits), trace.end.n, trace.end.cut) == (10, 10, True)
    assert end == GuestExit(0)
    assert printed.startswith(b"Hello")


def test_a_guest_that_halts_for_ever_does_not_fill_memory(
    backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no access is bounded, too: here by some eight, where timer-long ticks ten times."""
    monkeypatch.setattr(recorder_module, "_MARKS_LEAST", 4)
    with guest("timer-long", backend_name) as machine:
        recorder = TraceRecorder(machine, limit=1, looks="none")
        end = machine.run(budget=seconds(time_limit(30)))
        trace = recorder.finish(end)
        assert len(recorder._marks) < 20
    assert end == GuestExit(0)
    assert reread(trace) == trace
    assert trace.end is not None
    assert trace.end.cut


def test_the_limit_is_exact_when_it_is_the_last_exit(backend_name: str) -> None:
    with real("e680e680f4", backend_name) as machine:
        trace, _ = record(machine, limit=2)
    assert trace.end is not None
    assert (len(trace.exits), trace.end.cut) == (2, False)


@pytest.mark.parametrize(("looks", "expected"), [("none", 0), (5, 5), ("all", 43), ("auto", 43)])
def test_looks_are_taken_where_they_are_asked_for(looks: str | int, expected: int, backend_name: str) -> None:
    with guest("hello64", backend_name) as machine:
        trace, _ = record(machine, looks=looks)
    assert sum(r.looked for r in trace.exits) == expected
    assert all(r.looked for r in trace.exits[:expected])


def test_looks_are_rationed_when_they_have_had_their_second() -> None:
    budget = LookBudget("auto")
    now = 0
    for _ in range(200):
        assert budget.at <= now
        budget.took(now, now + 10_000_000)
        now = max(now + 10_000_000, budget.at)
    spent, whole = 200 * 10_000_000, now
    assert spent - 1_000_000_000 <= (whole - 1_000_000_000) / 9
    assert LookBudget("none").at > 1 << 61
    assert LookBudget("all").at == 0


def test_a_triple_fault_is_an_event(backend_name: str) -> None:
    with guest("fault", backend_name) as machine:
        trace, end = record(machine)
    assert isinstance(end, Shutdown)
    event = trace.records[-1]
    assert isinstance(event, Event)
    assert (event.n, event.kind) == (len(trace.exits), "shutdown")
    assert trace.end is not None
    assert trace.end.kind == "shutdown"


def test_a_device_that_raises_ends_the_trace(backend_name: str) -> None:
    class Broken:
        widths = frozenset({1})

        def read(self, offset: int, size: int, /) -> int:
            raise RuntimeError("broken")

        def write(self, offset: int, size: int, value: int, /) -> None: ...

    with real("e680e412f4", backend_name) as machine:
        machine.attach_port(0x12, 1, Broken(), "broken")
        recorder = TraceRecorder(machine)
        with pytest.raises(DeviceError) as caught:
            machine.run()
        trace = recorder.finish(caught.value, caught.value.message)
    assert reread(trace) == trace
    assert trace.end is not None
    assert (len(trace.exits), trace.end.kind) == (1, "error")
    assert "broken" in trace.end.detail


def test_two_vcpus(backend_name: str) -> None:
    with guest("smp-ping-pong", backend_name, clock="host") as machine:
        trace, end = record(machine)
    assert end == GuestExit(0)
    assert trace.header.cpus == 2
    assert {r.cpu for r in trace.exits} == {0, 1}
    assert "".join(r.output for r in trace.exits)


def test_each_msr_is_an_access(backend_name: str) -> None:
    """mov ecx, 0x1b; rdmsr; wrmsr: IA32_APIC_BASE of a pc, FEE00900h for the first vCPU (SDM vol. 3,
    10.4.4)."""
    with Machine(backend=backend_name, model="pc", memory=1 << 20, clock="exits") as machine:
        code = bytes.fromhex("66b91b000000 0f32 0f30 fa f4".replace(" ", ""))
        machine.load(load_bytes(code, name="t", load_address=0x7C00, mode="real"))
        trace, _ = record(machine)
    assert [(r.kind, r.address, r.value, r.device) for r in trace.exits] == [
        ("msr_read", 0x1B, 0xFEE00900, "lapic"),
        ("msr_write", 0x1B, 0xFEE00900, "lapic"),
    ]
    assert [here(trace, r) for r in trace.exits] == ["rdmsr", "wrmsr"]


def test_a_guest_whose_exits_are_all_elsewhere(backend_name: str) -> None:
    """2000 OUTs in a row, none executed twice: each has its own window."""
    with real("e680" * 2000 + HLT, backend_name) as machine:
        trace, _ = record(machine, looks="all")
    assert len(trace.exits) == 2000
    assert trace.exits[-1].rip == 0x7C00 + 4000
    assert all(here(trace, r) == "out 0x80, al" for r in trace.exits[::500])


def test_a_machine_runs_on_after_its_trace_as_before(backend_name: str) -> None:
    with real("e680e680f4", backend_name) as machine:
        recorder = TraceRecorder(machine)
        machine.run(budget=exits(1))
        recorder.finish(None)
        assert isinstance(machine.run(), Halt)
        assert machine.accesses.total == 2
    assert not machine._observers


def test_a_state_is_plain_and_bounded() -> None:
    found = plain_state(
        {
            "bytes": b"\x01\x02", "long": bytes(1000), "big": 1 << 70, "list": list(range(1000)),
            1: {"deep": {"a": {"b": {"c": {"d": {"e": 1}}}}}}, "other": Callable,
        }
    )  # fmt: skip
    assert found["bytes"] == "0102"
    assert str(found["long"]).endswith("... (1000 bytes)")
    assert found["big"] == hex(1 << 70)
    assert found["list"] == list(range(64))
    assert "..." in str(found["1"])
