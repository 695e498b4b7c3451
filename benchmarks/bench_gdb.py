"""A guest with a debugger attached, which does not stop it, against the same guest without.

What is measured is the CPU time of the whole process, with the thread at the socket, from the
debugger's attaching to the guest's end. The best round counts: noise only ever adds.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from bench_guest_code import ALU, count_in
from common import CPU, Benchmark, Result, compare, machine_with, unusable

from vmmsim import Machine
from vmmsim.debug.server import GdbServer

#: Turns of the loop: some tenths of a second.
_TURNS = {"unicorn": 120_000_000, "kvm": 40_000}


def _rate(backend: str, turns: int, run: Callable[[Machine], None]) -> float:
    """Turns of the loop in a second. ALU's loop counts down in ECX, and halts."""
    with machine_with(count_in(ALU[0], turns), backend, mode="l64") as machine:
        began = time.process_time()
        run(machine)
        return turns / (time.process_time() - began)


def _alone(machine: Machine) -> None:
    machine.run()


def _attached(machine: Machine) -> None:
    """gdb's part: attach, continue, and wait for the end, which it acknowledges."""
    with GdbServer("tcp:127.0.0.1:0") as server:
        port = int(server.address.rpartition(":")[2])
        client = socket.create_connection(("127.0.0.1", port))

        def debugger() -> None:
            client.sendall(b"$vCont;c#a8")
            had = b""
            while b"#" not in had.partition(b"thread:")[2]:
                had += client.recv(4096)
            client.sendall(b"+$vCont;c#a8")
            client.recv(4096)

        thread = threading.Thread(target=debugger, daemon=True)
        thread.start()
        server.serve(machine, wait=True)
        thread.join(5)
        client.close()


def _cost(backend: str, quick: bool) -> list[Result]:
    name = f"gdb_attached_{backend}"
    if why := unusable(backend):
        return [Result(name=name, unit="loops/s", backend=backend, skipped=why)]
    turns = _TURNS[backend] // (50 if quick else 1)
    return [
        compare(
            name, partial(_rate, backend, turns, _attached), partial(_rate, backend, turns, _alone),
            unit="loops/s", goal=1 / 1.02, backend=backend, clock=CPU, rounds=1 if quick else 9,
        )
    ]  # fmt: skip


BENCHMARKS: dict[str, Benchmark] = {
    f"gdb_attached_{backend}": partial(_cost, backend) for backend in ("unicorn", "kvm")
}
