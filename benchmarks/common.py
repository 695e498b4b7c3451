"""What all benchmarks share: the shape of a result, interleaved rounds, small guests.

A figure is only worth something beside another one that was measured in the same seconds
on the same machine. So both sides of a ratio run in turn, A B A B, for several rounds. Of
a side that is bound by the CPU the best round counts (noise only ever makes it slower),
by the thread's CPU time; where the kernel or whole processes take part it is the median
of wall time, by the same rounds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from vmmsim import Machine
from vmmsim.errors import VmmsimError
from vmmsim.loaders.flat import load_flat

CPU, WALL = "cpu", "wall"
CLOCKS: dict[str, Callable[[], float]] = {CPU: time.thread_time, WALL: time.perf_counter}


@dataclass(kw_only=True)
class Result:
    """One line of the report. `goal` is of the ratio, or as it says; `met` is None without one.

    `skipped` is why there is no value. `low` and `high` are the least and the most of the rounds that
    `value` is of, `baseline_low` and `baseline_high` those of the baseline. A point of a curve has `x`, in
    `x_unit`; its curve are the results whose names begin alike.
    """

    name: str
    unit: str
    value: float | None = None
    baseline: float | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
    backend: str = ""
    clock: str = ""
    of: str = ""
    skipped: str = ""
    low: float | None = None
    high: float | None = None
    baseline_low: float | None = None
    baseline_high: float | None = None
    x: float | None = None
    x_unit: str = ""

    def json(self) -> dict[str, Any]:
        return asdict(self)


#: Measures one benchmark. The argument: tiny sizes, to see that it works.
Benchmark = Callable[[bool], list[Result]]


def compare(
    name: str,
    ours: Callable[[], float],
    baseline: Callable[[], float],
    *,
    unit: str,
    goal: float | None,
    backend: str,
    clock: str,
    rounds: int,
) -> Result:
    """Run both sides in turn. Each returns a rate; the goal is the least value / baseline."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        rates[0].append(ours())
        rates[1].append(baseline())
    pick = max if clock == CPU else median
    value, base = pick(rates[0]), pick(rates[1])
    return Result(
        name=name,
        unit=unit,
        value=value,
        baseline=base,
        ratio=value / base,
        goal="" if goal is None else f"ratio >= {goal}",
        met=None if goal is None else value / base >= goal,
        backend=backend,
        clock=clock,
        of=f"{'best' if clock == CPU else 'median'} of {rounds}",
        low=min(rates[0]),
        high=max(rates[0]),
        baseline_low=min(rates[1]),
        baseline_high=max(rates[1]),
    )


class Trivial:
    """A device that does nothing: what is left is what the access costs."""

    widths = frozenset({1, 2, 4, 8})

    def read(self, offset: int, size: int, /) -> int:
        return 0x41

    def write(self, offset: int, size: int, value: int, /) -> None:
        pass


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Force Unicorn's engine (`native`, `portable`) for machines made inside."""
    before = os.environ.get("VMMSIM_UNICORN")
    os.environ["VMMSIM_UNICORN"] = name
    try:
        yield
    finally:
        del os.environ["VMMSIM_UNICORN"]
        if before is not None:
            os.environ["VMMSIM_UNICORN"] = before


#: Where guests are, and where their MMIO is: a hole in the RAM of `machine_with`.
CODE, PORT, HOLE = 0x8000, 0x10, 0x1000


def machine_with(code: bytes, backend: str, *, mode: str = "real") -> Machine:
    """A machine of 1 MiB with `code` at CODE and a Trivial device at PORT and at HOLE."""
    machine = Machine(backend=backend, memory=1 << 20, without=("char-in",))
    try:
        machine.attach_port(PORT, 1, Trivial(), "port")
        machine.attach_mmio(HOLE, 16, Trivial(), "mmio")
        machine.load(load_flat(code, name="benchmark", load_address=CODE, mode=mode))
    except BaseException:
        machine.close()
        raise
    return machine


#: The access of each loop below, in 16-bit code.
ACCESSES = {
    "port_out": bytes.fromhex("e610"),  # out 0x10, al
    "port_in": bytes.fromhex("e410"),  # in al, 0x10
    "mmio_write": bytes.fromhex("a20010"),  # mov [0x1000], al
    "mmio_read": bytes.fromhex("a00010"),  # mov al, [0x1000]
}


def access_loop(kind: str, count: int, *, al: int = 0x55) -> bytes:
    """mov al, 0x55; mov ecx, count; again: the access; dec ecx; jnz again; hlt. In 16-bit code."""
    access = ACCESSES[kind]
    start = b"\xb0" + bytes([al]) + b"\x66\xb9" + count.to_bytes(4, "little")
    return start + access + b"\x66\x49\x75" + bytes([256 - (len(access) + 4)]) + b"\xf4"


def unusable(backend: str) -> str:
    """Why a backend cannot be used here, or nothing."""
    from vmmsim.backends import availability

    try:
        found = availability(backend)
    except VmmsimError as error:
        return error.message
    return "" if found.usable else found.reason
