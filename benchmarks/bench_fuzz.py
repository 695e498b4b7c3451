"""The fuzzer: random programs compared on both CPUs, against the calls that this needs at least.

The baseline does, for the same programs and without looking at anything: on KVM one ioctl for the
registers, KVM_RUN, and one for the segments (with x87 and SSE one more each way); on Unicorn the copy of
the CPU structure in, `uc_emu_start`, and the copy out; and the code's bytes into memory on both.
Making the programs is a part of what is measured, not of the baseline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from common import CPU, Benchmark, Result, compare, unusable

from vmmsim.backends import open_backend
from vmmsim.diff.case import MODE_NAMES, SLOT
from vmmsim.diff.generate import generate
from vmmsim.diff.runner import Pair

#: Programs a second on one core.
_GOAL = 2000


@contextmanager
def _pair() -> Iterator[Pair]:
    with Pair(open_backend("kvm")[0], open_backend("unicorn")[0]) as pair:
        yield pair


def _fuzzed(pair: Pair, mode: str, count: int) -> float:
    start = time.thread_time()
    for seed in range(count):
        pair.run(generate(mode, seed))
    return count / (time.thread_time() - start)


def _bare(pair: Pair, mode: str, count: int) -> float:
    import fcntl

    from unicorn.unicorn_py3.unicorn import uclib

    from vmmsim.backends import kvm_abi as abi
    from vmmsim.backends import kvm_state

    cases = [generate(mode, seed) for seed in range(count)]
    pair.run(cases[0])
    left, right = pair.left, pair.right
    kvm: Any = left._quick  # type: ignore[attr-defined]
    unicorn: Any = right._quick  # type: ignore[attr-defined]
    fd, regs, sregs = kvm._cpu.fd, kvm._cpu.register_bytes(), bytearray(len(kvm._sregs))
    image = kvm_state.fpu_to(kvm._base.fpu, 0)
    back = bytearray(len(image))
    context, handle = unicorn._context, unicorn._vcpu._handle
    float_state = mode == "64u"
    stop = 0x2000  # a HLT
    start = time.thread_time()
    for case in cases:
        left.ram[case.place : case.place + SLOT] = case.image
        right.ram[case.place : case.place + SLOT] = case.image
        fcntl.ioctl(fd, abi.SET_REGS, regs)
        if float_state:
            fcntl.ioctl(fd, abi.SET_XSAVE, image)
        fcntl.ioctl(fd, abi.RUN)
        fcntl.ioctl(fd, abi.GET_SREGS, sregs)
        if float_state:
            fcntl.ioctl(fd, abi.GET_XSAVE, back)
        context.restore()
        uclib.uc_emu_start(handle, stop, 0, 0, 0)
        context.save()
    seconds = time.thread_time() - start
    left._reset()  # type: ignore[attr-defined]
    right._reset()  # type: ignore[attr-defined]
    return count / seconds


def _run(mode: str, quick: bool) -> list[Result]:
    name = f"fuzz_{mode}"
    why = unusable("kvm") or unusable("unicorn")
    if why:
        return [Result(name=name, unit="programs/s", backend="kvm, unicorn", skipped=why)]
    count = 50 if quick else 2000
    with _pair() as pair:
        result = compare(
            name,
            lambda: _fuzzed(pair, mode, count),
            lambda: _bare(pair, mode, count),
            unit="programs/s",
            goal=None,
            backend="kvm, unicorn",
            clock=CPU,
            rounds=1 if quick else 5,
        )
    result.goal = f"value >= {_GOAL}"
    result.met = result.value is not None and result.value >= _GOAL
    return [result]


def _campaign(quick: bool) -> list[Result]:
    """Two processes against one, by wall time; the processes are started before it is measured."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from vmmsim.diff.campaign import Range, run_campaign

    why = unusable("kvm") or unusable("unicorn")
    if why:
        return [Result(name="fuzz_processes", unit="cases/s", backend="kvm, unicorn", skipped=why)]
    jobs = [Range("32", first, 250) for first in range(0, 500 if quick else 12000, 250)]
    cases = sum(job.count for job in jobs)

    def rate(processes: int) -> float:
        executor = ProcessPoolExecutor(processes, get_context("spawn"))
        warm = [executor.submit(time.sleep, 0.5) for _ in range(processes)]
        for future in warm:
            future.result()
        run_campaign(jobs[:processes], lambda: _Kept(executor), window=4)
        start = time.perf_counter()
        run_campaign(jobs, lambda: _Kept(executor), window=2 * processes)
        seconds = time.perf_counter() - start
        executor.shutdown()
        return cases / seconds

    return [
        compare(
            "fuzz_processes",
            lambda: rate(2),
            lambda: rate(1),
            unit="cases/s",
            goal=1.8,
            backend="kvm, unicorn",
            clock="wall",
            rounds=1 if quick else 3,
        )
    ]


class _Kept:
    """An executor that a campaign does not end."""

    def __init__(self, executor: Any) -> None:
        self.submit = executor.submit

    def shutdown(self, **_: Any) -> None:
        pass


BENCHMARKS: dict[str, Benchmark] = {
    **{f"fuzz_{mode}": partial(_run, mode) for mode in MODE_NAMES},
    "fuzz_processes": _campaign,
}
