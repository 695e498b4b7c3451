"""Live migration: how long a guest that keeps on storing stands still, against stop-and-copy.

A 64 MiB guest, every page of it filled, whose timer has it store to another page 500 times a
second (IRQ 0 of the pc's 8254; between two of them it halts). It moves to a thread of this process through
a socket pair, as to another process through a Unix socket: everything is hashed, sent,
and put in place. The pause is from the guest's last instruction here to the word that it runs
there, in wall time; so is that of stop-and-copy, which has the handshake in it too.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from functools import partial
from statistics import median

from common import WALL, Benchmark, Result, unusable

from vmmsim import Machine
from vmmsim.budget import seconds
from vmmsim.loaders.flat import load_flat
from vmmsim.snapshot.migrate import Report, migrate
from vmmsim.snapshot.receive import Received, receive
from vmmsim.snapshot.wire import Wire

_GOAL = 0.020
_RATE = 500
_CODE, _HANDLER, _IDT = 0x8000, 0x8100, 0x9000
_FIRST, _LAST = 0x1000000, 0x3000000
#: 32-bit: 8259 with IRQ 0 at vector 0x20, 8254 at 1193182 / 2386 = 500 Hz, lidt [0x9000], sti, hlt for ever.
_START = bytes.fromhex(
    "b011e620b020e621b004e621b001e621b0fee621b034e643b052e640b009e640be00000001bf00000003660f011d00900000"
    "fbf4ebfd"
)
#: inc dword [esi]; inc ebx; esi to the next page of 16..48 MiB; EOI; iretd.
_STORE = bytes.fromhex("ff064381c60010000039fe7205be00000001b020e620cf")


def dirtying(backend: str, memory: int) -> Machine:
    """The guest, which has run for a moment. EBX counts the pages that it has stored to."""
    machine = Machine(backend=backend, memory=memory, model="pc", clock="host")
    try:
        page = random.Random(4096).randbytes(4096)
        for at in range(0x100000, memory, 4096):
            machine.memory.write(at, page)
        machine.load(load_flat(_START, name="dirtying", load_address=_CODE, mode="p32"))
        machine.memory.write(_HANDLER, _STORE)
        gate = _HANDLER.to_bytes(2, "little") + b"\x08\x00\x00\x8e\x00\x00"
        machine.memory.write(_IDT, (0x21 * 8 - 1).to_bytes(2, "little") + (_IDT + 16).to_bytes(4, "little"))
        machine.memory.write(_IDT + 16 + 0x20 * 8, gate)
        machine.run(budget=seconds(0.2))
    except BaseException:
        machine.close()
        raise
    return machine


def _move(backend: str, memory: int, live: bool) -> tuple[Report, float]:
    """The report, and the pages that it stored to a second, there."""
    ours, theirs = socket.socketpair()
    arrived: list[Received] = []
    taking = threading.Thread(target=lambda: arrived.append(receive(Wire(theirs, 10), backend=backend)))
    with dirtying(backend, memory) as machine:
        taking.start()
        moved = migrate(machine, Wire(ours, 10), live=live, timeout=60)
        taking.join()
    assert moved.report is not None, moved
    with arrived[0].machine as there:
        before, began = there.cpu.rbx, time.perf_counter()
        there.run(budget=seconds(0.3))
        rate = (there.cpu.rbx - before) / (time.perf_counter() - began)
    return moved.report, rate


def _run(backend: str, quick: bool) -> list[Result]:
    name = f"migration_pause_{backend}"
    why = unusable(backend)
    if why:
        return [Result(name=name, unit="ms", backend=backend, skipped=why)]
    memory, rounds = (50 << 20, 1) if quick else (64 << 20, 5)
    live, still, rates = [], [], []
    for _ in range(rounds):
        report, rate = _move(backend, memory, True)
        live.append(report)
        rates.append(rate)
        still.append(_move(backend, memory, False)[0])
    pause = median(report.pause_seconds for report in live)
    base = median(report.pause_seconds for report in still)
    of = f"median of {rounds}, {median(rates):.0f} pages/s, {median(r.rounds for r in live):g} rounds"
    return [
        Result(
            name=name, unit="ms", value=pause * 1000, baseline=base * 1000, ratio=pause / base,
            goal=f"value <= {_GOAL * 1000:g} ms", met=pause <= _GOAL, backend=backend, clock=WALL, of=of,
        ),
        Result(
            name=f"migration_throughput_{backend}", unit="MB/s",
            value=median(r.bytes_per_second for r in live) / 1e6,
            baseline=median(r.bytes_per_second for r in still) / 1e6,
            ratio=median(r.bytes_per_second for r in live) / median(r.bytes_per_second for r in still),
            backend=backend, clock=WALL, of="live, stop-and-copy",
        ),
        Result(
            name=f"migration_begin_{backend}", unit="ms",
            value=median(r.begin_seconds for r in live) * 1000, backend=backend, clock=WALL,
            of="the guest stands still at the beginning",
        ),
    ]  # fmt: skip


BENCHMARKS: dict[str, Benchmark] = {"migration_unicorn": partial(_run, "unicorn")}
