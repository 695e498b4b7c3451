"""Snapshots: bringing a machine back, clones from a file, what they cost in memory, and files.

Times are wall time, medians of rounds in which both sides take their turns. Private memory is what
/proc/self/smaps_rollup says (Pss and Private_*), the difference over the clones divided by their
number; all of them are alive, and each has run its first instruction and stored to a page.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from common import WALL, Benchmark, Result, unusable

from vmmsim import Machine
from vmmsim.backends import open_backend
from vmmsim.backends.base import Backend
from vmmsim.loaders.flat import load_flat
from vmmsim.snapshot.clone import CloneJob, run_clone
from vmmsim.snapshot.container import load, save
from vmmsim.snapshot.pack import pack
from vmmsim.snapshot.values import Snapshot

_HOSTS = Path(__file__).resolve().parent.parent / "tools" / "hosts"
_MIB = 1 << 20
_USED = 4 * _MIB
_CODE = 0x8000
_BLOCK = 10
#: mov edi, 0x200000; again: inc byte [edi]; add edi, 8192; dec ecx; jnz again; hlt
_STORE_TO_PAGES = bytes.fromhex("bf00002000 fe07 81c700200000 49 75f5 f4")
#: mov [0x9000], al; out 0x10, al; hlt
_STORE_AND_TELL = bytes.fromhex("a20090 e610 f4")


def _machine(backend: Backend, memory: int, used: int = _USED) -> Machine:
    machine = Machine(backend=backend, memory=memory)
    machine.load(load_flat(_STORE_AND_TELL, name="benchmark", load_address=_CODE, mode="real"))
    block = b"".join(bytes([n & 0xFF, n >> 8]) + os.urandom(254) for n in range(4096))
    for at in range(_MIB, _MIB + used, len(block)):
        machine.memory.write(at, block[: _MIB + used - at])
    return machine


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _rounds(count: int, *sides: Callable[[], float]) -> list[float]:
    """The medians of the sides; see `_times`."""
    return [median(mine) for mine in _times(count, *sides)]


def _times(count: int, *sides: Callable[[], float]) -> list[list[float]]:
    """The times of the sides, which take turns: some times one, then some times the next, since each
    empties the caches of the others."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(-(-count // _BLOCK)):
        for mine, side in zip(times, sides, strict=True):
            mine += [side() for _ in range(_BLOCK)]
    return times


def _most(
    name: str,
    value: float,
    baseline: float | None,
    goal: float,
    *,
    unit: str,
    backend: str = "",
    of: str = "",
    x: float | None = None,
    x_unit: str = "",
) -> Result:
    """A result whose value is to be at most goal times the baseline, or at most the goal without one."""
    ratio = None if baseline is None else value / baseline
    return Result(
        name=name,
        unit=unit,
        value=value,
        baseline=baseline,
        ratio=ratio,
        goal=f"ratio <= {goal:.4g}" if baseline is not None else f"value <= {goal:.4g}",
        met=(value if ratio is None else ratio) <= goal,
        backend=backend,
        clock=WALL if unit in ("us", "ms", "s") else "",
        of=of,
        x=x,
        x_unit=x_unit,
    )


@contextlib.contextmanager
def _restoring(
    opened: Backend, used: int
) -> Iterator[tuple[Machine, Callable[..., float], Callable[[], float]]]:
    """A machine of 64 MiB with a snapshot. Seconds to go back to it, or to another of the same moment, after
    the guest has run and stored to some pages; and seconds to copy 64 MiB."""
    size = 64 * _MIB
    source, target = bytes(size), mmap.mmap(-1, size)
    with _machine(opened, size, used=used) as machine:
        machine.load(load_flat(_STORE_TO_PAGES, name="benchmark", load_address=_CODE, mode="p32"))
        snapshot = machine.snapshot()

        def back(pages: int, to: Snapshot = snapshot) -> float:
            registers = machine.vcpu.registers()
            registers.rcx = pages
            machine.vcpu.set_registers(registers)
            machine.run()
            return _timed(lambda: machine.restore(to))

        yield machine, back, lambda: _timed(lambda: target.__setitem__(slice(size), source))
    target.close()


def _restore(backend: str, quick: bool) -> list[Result]:
    """Back to a snapshot of 64 MiB, after the guest has run and stored to pages."""
    if why := unusable(backend):
        return [Result(name=f"snapshot_restore_{backend}", unit="us", backend=backend, skipped=why)]
    opened = open_backend(backend)[0]
    rounds = 10 if quick else 200
    with _restoring(opened, (4 if quick else 62) * _MIB) as (machine, back, copy):

        def cpu() -> float:
            state = machine.vcpu.state()
            return _timed(lambda: machine.vcpu.set_state(state))

        copied, hundred, one, state = _rounds(rounds, copy, lambda: back(100), lambda: back(1), cpu)
    opened.close()
    of = f"median of {rounds}"
    make = partial(_most, unit="us", backend=backend)
    return [
        make(
            f"snapshot_restore_100_pages_{backend}", hundred * 1e6, copied * 1e6, 1 / 40,
            of=f"{of}; copying 64 MiB",
        ),
        make(
            f"snapshot_restore_1_page_{backend}", max(0.0, one - state) * 1e6, copied * 1e6, 1 / 100,
            of=f"{of}; {one * 1e6:.0f} us less set_state's {state * 1e6:.0f} us; copying 64 MiB",
        ),
    ]  # fmt: skip


def _restore_other_pages(backend: str, quick: bool) -> list[Result]:
    """The same restore where the host's pages have 16 KiB, under the rules of tools/hosts/pages, against this
    host as it is; in processes that take turns. The snapshot is in memory, or loaded from a file."""
    name = f"snapshot_restore_16k_host_{backend}"
    why = unusable(backend) or (
        "" if sys.platform == "linux" and mmap.PAGESIZE == 4096 else "needs 4 KiB pages"
    )
    if why:
        return [Result(name=name, unit="us", backend=backend, skipped=why)]
    rounds, turns, used = (5, 1, 4) if quick else (100, 5, 62)
    command = [sys.executable, __file__, "restore", backend, str(rounds), str(used)]
    rules = [sys.executable, str(_HOSTS / "pages"), "--page", "16K"]
    times: list[list[dict[str, float]]] = [[], []]
    for _ in range(turns):
        for side, before in zip(times, ([], rules), strict=True):
            ran = subprocess.run(before + command, capture_output=True, text=True, timeout=600, check=False)
            if ran.returncode:
                reason = ran.stderr.strip().splitlines()[-1]
                return [Result(name=name, unit="us", backend=backend, skipped=reason)]
            side.append(json.loads(ran.stdout.splitlines()[-1]))
    small, large = ({way: median(t[way] for t in side) for way in side[0]} for side in times)
    return [
        _most(
            f"{name}_{way}", large[way] * 1e6, small[way] * 1e6, 3.0, unit="us", backend=backend,
            of=f"100 pages of 64 MiB; median of {turns} processes of {rounds}; pages of 4 KiB",
        )
        for way in small
    ]  # fmt: skip


def _restore_main(backend: str, rounds: int, used: int) -> None:
    opened = open_backend(backend)[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        _restoring(opened, used * _MIB) as (machine, back, _copy),
    ):
        path = Path(folder) / "file"
        save(machine.snapshot(), path)
        loaded = load(path)
        back(100, loaded)  # the file is mapped
        file = median(back(100, loaded) for _ in range(rounds))
        memory = median(back(100) for _ in range(rounds))
    print(json.dumps({"memory": memory, "file": file}))


def _restore_curve(backend: str, quick: bool) -> list[Result]:
    """The same over the number of pages that the guest has stored to, of 16384."""
    name = f"restore_curve_{backend}"
    if why := unusable(backend):
        return [Result(name=name, unit="us", backend=backend, skipped=why)]
    opened = open_backend(backend)[0]
    rounds = 10 if quick else 50
    points = (1, 64, 1024) if quick else (1, 4, 16, 64, 256, 1024, 2048, 4096, 7680)
    with _restoring(opened, 62 * _MIB) as (_machine, back, copy):
        times = _times(rounds, copy, *[partial(back, pages) for pages in points])
    opened.close()
    copied = median(times[0])
    return [
        Result(
            name=f"{name}_{pages}",
            unit="us",
            value=median(mine) * 1e6,
            baseline=copied * 1e6,
            ratio=median(mine) / copied,
            backend=backend,
            clock=WALL,
            of=f"median of {rounds}; copying 64 MiB",
            low=min(mine) * 1e6,
            high=max(mine) * 1e6,
            baseline_low=min(times[0]) * 1e6,
            baseline_high=max(times[0]) * 1e6,
            x=pages,
            x_unit="pages",
        )
        for pages, mine in zip(points, times[1:], strict=True)
    ]


def _cpu_state(quick: bool) -> list[Result]:
    """Saving the CPU and putting it back, as restoring does, against the bare ioctls of the same structs."""
    name = "snapshot_cpu_state_kvm"
    if why := unusable("kvm"):
        return [Result(name=name, unit="us", backend="kvm", skipped=why)]
    import fcntl

    from vmmsim.backends import kvm_abi as abi
    from vmmsim.backends import kvm_state

    opened = open_backend("kvm")[0]
    rounds = 5 if quick else 500
    with _machine(opened, _MIB * 8, used=_MIB) as machine:
        vcpu = machine.vcpu
        held = vcpu.state()
        fd: int = vcpu._cpu.fd  # type: ignore[attr-defined]
        image = bytearray(kvm_state.XSAVE_SIZE)
        msrs = kvm_state.msrs_to(held.msrs)
        gets: list[tuple[int, object]] = [
            (abi.GET_REGS, abi.Regs()), (abi.GET_SREGS, abi.Sregs()), (abi.GET_XSAVE, image),
            (abi.GET_XCRS, abi.Xcrs()), (abi.GET_DEBUGREGS, abi.Debugregs()), (abi.GET_MSRS, msrs),
            (abi.GET_VCPU_EVENTS, kvm_state.events_to(held.events)),
        ]  # fmt: skip
        sets = [
            (put, gets[at][1])
            for put, at in (
                (abi.SET_SREGS, 1), (abi.SET_REGS, 0), (abi.SET_XCRS, 3), (abi.SET_XSAVE, 2),
                (abi.SET_DEBUGREGS, 4), (abi.SET_MSRS, 5), (abi.SET_VCPU_EVENTS, 6),
            )
        ]  # fmt: skip

        def bare() -> None:
            for request, data in gets:
                fcntl.ioctl(fd, request, data)  # type: ignore[call-overload]
            for request, data in sets:
                fcntl.ioctl(fd, request, data)  # type: ignore[call-overload]

        def ours() -> None:
            vcpu.set_proven(vcpu.state())

        def again() -> None:
            vcpu.set_proven(held)

        bare()
        value, base, fast = _rounds(rounds, lambda: _timed(ours), lambda: _timed(bare), lambda: _timed(again))
    opened.close()
    of = f"median of {rounds}; putting back the same once more: {fast * 1e6:.0f} us"
    return [_most(name, value * 1e6, base * 1e6, 1.3, unit="us", backend="kvm", of=of)]


def _first(snapshot: Snapshot, backend: Backend, begin: Callable[[], Snapshot]) -> tuple[float, Machine]:
    """Seconds from the snapshot to the clone's first access, two instructions in; the clone."""
    seen: list[float] = []
    began = time.perf_counter()
    machine = begin().clone(backend=backend)
    machine.observe(lambda *access: seen.append(time.perf_counter()))
    machine.run()
    return seen[0] - began, machine


def _latency(backend: str, quick: bool) -> list[Result]:
    name = f"clone_first_instruction_{backend}"
    if why := unusable(backend):
        return [Result(name=name, unit="ms", backend=backend, skipped=why)]
    opened = open_backend(backend)[0]
    rounds = 3 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for size in (64, 256 if quick else 4096):
            with _machine(opened, size * _MIB) as machine:
                paths[size] = Path(folder) / f"{size}"
                save(machine.snapshot(), paths[size])
        small, large = paths

        def kept(size: int) -> Callable[[], float]:
            snapshot = load(paths[size])

            def measure() -> float:
                seconds, machine = _first(snapshot, opened, lambda: snapshot)
                machine.close()
                return seconds

            return measure

        def anew() -> float:
            seconds, machine = _first(snapshot, opened, lambda: load(paths[small], verify=False))
            machine.close()
            return seconds

        snapshot = load(paths[small])
        job = CloneJob(path=str(paths[small]), id=snapshot.id or "", number=1, backend=backend, timeout=None)
        run_clone(job)
        warm, big, opening, ready = _rounds(
            rounds, kept(small), kept(large), anew, lambda: run_clone(job).ready_seconds
        )
    opened.close()
    goal = 3.0 if backend == "kvm" else 1.5
    of = f"median of {rounds}"
    ms = partial(_most, unit="ms", backend=backend)
    return [
        ms(name, warm * 1e3, None, goal, of=f"{of}; a warm process, its file loaded"),
        ms(f"{name}_loading", opening * 1e3, None, goal, of=f"{of}; the file is opened each time"),
        ms(f"{name}_worker", ready * 1e3, None, goal, of=f"{of}; a job of vmmsim clone, from a path"),
        ms(f"{name}_{large}_mib", big * 1e3, warm * 1e3, 1.2, of=f"{of}; {small} MiB"),
    ]


def _private() -> tuple[int, int]:
    """(Pss, Uss) of this process in bytes."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) << 10
    return fields["Pss"], fields["Private_Clean"] + fields["Private_Dirty"]


def _alive(backend: str, most: int, quick: bool) -> list[Result]:
    """Many clones at once, in a process of their own: its memory is theirs alone."""
    name = f"clones_alive_{backend}"
    why = unusable(backend) or (
        "" if Path("/proc/self/smaps_rollup").exists() else "there is no smaps_rollup"
    )
    if why:
        return [Result(name=name, unit="bytes", backend=backend, skipped=why)]
    count = most // 50 if quick else most
    ran = subprocess.run(
        [sys.executable, __file__, "alive", backend, str(count)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        return [Result(name=name, unit="bytes", backend=backend, skipped=ran.stderr.strip().splitlines()[-1])]
    curve = json.loads(ran.stdout)
    return [
        _most(
            f"{name}_{point['clones']}", point["uss"], None, _MIB, unit="bytes", backend=backend,
            of=f"Uss a clone, Pss {point['pss']:.0f}; "
            f"{point['mappings']:.1f} mappings, {point['fds']:.1f} fds each",
            x=point["clones"], x_unit="clones",
        )
        for point in curve
    ]  # fmt: skip


def _alive_main(backend: str, count: int) -> None:
    import resource

    opened = open_backend(backend)[0]
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    alive: list[Machine] = []
    curve = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one"
        with _machine(opened, 64 * _MIB) as machine:
            save(machine.snapshot(), path)
        snapshot = load(path)
        for _ in range(3):
            _first(snapshot, opened, lambda: snapshot)[1].close()

        def held() -> tuple[int, int, int, int]:
            gc.collect()
            mappings = Path("/proc/self/maps").read_text(encoding="utf-8").count("\n")
            return (*_private(), mappings, len(os.listdir("/proc/self/fd")))

        before = held()
        points = sorted({point for point in (1, 5, 10, 50, 100, 250, 500) if point < count} | {count})
        for point in points:
            while len(alive) < point:
                alive.append(_first(snapshot, opened, lambda: snapshot)[1])
            now = held()
            pss, uss, mappings, fds = ((b - a) / point for a, b in zip(before, now, strict=True))
            curve.append({"clones": point, "pss": pss, "uss": uss, "mappings": mappings, "fds": fds})
        for machine in alive:
            machine.close()
    print(json.dumps(curve))


def _files(quick: bool) -> list[Result]:
    opened = open_backend("auto")[0]
    with tempfile.TemporaryDirectory() as folder, _machine(opened, 64 * _MIB) as machine:
        path, packed = Path(folder) / "whole", Path(folder) / "packed"
        saving = _timed(lambda: save(machine.snapshot(), path))
        packing = _timed(lambda: pack(path, packed))
        size = path.stat().st_blocks * 512
        small = packed.stat().st_size
    opened.close()
    return [
        _most("snapshot_file", size, None, 4.2 * _MIB, unit="bytes", of="on disk; of 64 MiB 4 MiB are used"),
        _most(
            "snapshot_file_pack", packing, None, 1.0, unit="s", of=f"{small} bytes; saved in {saving:.3f} s"
        ),
    ]  # fmt: skip


BENCHMARKS: dict[str, Benchmark] = {
    "snapshot_restore_unicorn": partial(_restore, "unicorn"),
    "snapshot_restore_kvm": partial(_restore, "kvm"),
    "snapshot_restore_16k_host_unicorn": partial(_restore_other_pages, "unicorn"),
    "snapshot_restore_16k_host_kvm": partial(_restore_other_pages, "kvm"),
    "restore_curve_unicorn": partial(_restore_curve, "unicorn"),
    "restore_curve_kvm": partial(_restore_curve, "kvm"),
    "snapshot_cpu_state_kvm": _cpu_state,
    "clone_first_instruction_unicorn": partial(_latency, "unicorn"),
    "clone_first_instruction_kvm": partial(_latency, "kvm"),
    "clones_alive_unicorn": partial(_alive, "unicorn", 1000),
    "clones_alive_kvm": partial(_alive, "kvm", 500),
    "snapshot_file": _files,
}

if __name__ == "__main__":
    main: Callable[..., None] = {"alive": _alive_main, "restore": _restore_main}[sys.argv[1]]
    main(sys.argv[2], *map(int, sys.argv[3:]))
