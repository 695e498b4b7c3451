"""A case: code, a mode, memory, and exactly the exits, registers and bytes that follow.

Each case runs four times, since the ways to run must not differ: one exit at a time, the
same while the registers are looked at after every exit, inline with a handler, and all of
these mixed by chance with cancels, stops and (where they exist) instruction budgets.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from fnmatch import fnmatchcase

import msgspec

from ..backends.base import Backend
from ..diff.divergences import divergence
from ..exits import Access, BudgetSpent, Cancelled, Exit, ReadAccess, WriteAccess
from .bench import CODE, DATA, END, Bench, Script, Seen
from .checks import Check

__all__ = ["HALT", "Case", "checks_of", "mr", "mw", "pr", "pw"]

#: HLT in the list of expected exits.
HALT: Seen = ("halt", 0, 0, 0)


def pr(port: int, size: int, answer: int) -> Seen:
    """The guest reads a port and is answered so."""
    return ("port_read", port, size, answer)


def pw(port: int, size: int, value: int) -> Seen:
    """The guest writes a port."""
    return ("port_write", port, size, value)


def mr(gpa: int, size: int, answer: int) -> Seen:
    """The guest loads from MMIO and is answered so."""
    return ("mmio_read", gpa, size, answer)


def mw(gpa: int, size: int, value: int) -> Seen:
    """The guest stores to MMIO or ROM."""
    return ("mmio_write", gpa, size, value)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """`code` is a listing (bench.listing); the instruction that ends the guest is added.

    `data` lies at DATA, `memory` at its addresses. `expect` are the exits before the end,
    `after` the registers and `stored` the bytes at the end. Where a provenance (a pattern,
    as `kvm/pvm`) differs by nature, `divergence` names the entry of divergences.toml and
    `instead` has the exits seen there.
    """

    name: str
    modes: tuple[str, ...]
    code: str
    regs: dict[str, int] = {}
    data: bytes = b""
    memory: dict[int, bytes] = {}
    expect: tuple[Seen, ...] = ()
    after: dict[str, int] = {}
    stored: dict[int, bytes] = {}
    divergence: str = ""
    instead: dict[str, tuple[Seen, ...]] = {}

    def expected_on(self, provenance: str) -> tuple[Seen, ...]:
        for pattern, exits in self.instead.items():
            if fnmatchcase(provenance, pattern):
                divergence(self.divergence)
                return exits
        return self.expect


def checks_of(cases: tuple[Case, ...]) -> list[Check]:
    """A check for each case and mode, named `case[mode]`."""
    return [Check(f"{c.name}[{m}]", _about(c), _runner(c, m)) for c in cases for m in c.modes]


def _about(case: Case) -> str:
    return f"{len(case.expect)} exits" + (f" (divergence {case.divergence})" if case.divergence else "")


def _runner(case: Case, mode: str) -> Callable[[Backend], None]:
    def run(backend: Backend) -> None:
        for style in (_one_at_a_time, _looking, _inline, _interrupted):
            memory = {DATA: case.data, **case.memory} if case.data else case.memory
            with Bench(backend, mode, case.code, regs=case.regs, memory=memory) as bench:
                wanted = [*case.expected_on(backend.provenance), _end(mode)]
                try:
                    style(bench, wanted)
                    _compare_end(bench, case)
                except AssertionError as error:
                    style_name = style.__name__.strip("_").replace("_", " ")
                    raise AssertionError(f"{case.name}[{mode}], {style_name}: {error}") from None

    return run


def _end(mode: str) -> Seen:
    return pw(0xF4, 1, -1) if mode in END else HALT


def _matches(seen: Seen, wanted: Seen) -> bool:
    return seen == wanted or (wanted[3] == -1 and seen[:3] == wanted[:3])


def _text(step: Seen) -> str:
    kind, address, size, value = step
    return kind if not size else f"{kind} {address:#x} size {size} = {value:#x}"


def _step(exit: Exit, wanted: Seen) -> Seen:
    """The exit as a step; a read is answered with what the case says."""
    if isinstance(exit, WriteAccess):
        return (exit.kind, exit.address, exit.size, exit.value)
    if isinstance(exit, ReadAccess):
        exit.reply(wanted[3] & ((1 << 8 * exit.size) - 1) if wanted[3] >= 0 else 0)
        return (exit.kind, exit.address, exit.size, wanted[3])
    return (exit.kind, 0, 0, 0)


def _one_at_a_time(bench: Bench, wanted: list[Seen], *, look: bool = False) -> None:
    for number, step in enumerate(wanted):
        exit = bench.run()
        if look:
            before = bench.vcpu.registers()
            if isinstance(exit, ReadAccess):
                assert before == bench.vcpu.registers(), f"exit {number}: registers change while one looks"
        seen = _step(exit, step)
        assert _matches(seen, step), (
            f"exit {number} is {_text(seen) if isinstance(exit, Access) else exit.describe()}, "
            f"expected {_text(step)}"
        )
        if look:
            bench.vcpu.registers()
            bench.vcpu.state()


def _looking(bench: Bench, wanted: list[Seen]) -> None:
    _one_at_a_time(bench, wanted, look=True)


def _inline(bench: Bench, wanted: list[Seen]) -> None:
    script = Script([step[3] for step in wanted if step[0].endswith("_read")])

    def at_the_end(number: int) -> None:
        if wanted[-1] is not HALT and number == len(wanted) - 1:
            bench.vcpu.stop_here(Cancelled())

    script.on_access = at_the_end
    seen: list[Seen] = []
    while len(seen) < len(wanted):
        done = len(script.seen)
        exit = bench.run_inline(script)
        seen += script.seen[done:]
        if isinstance(exit, Cancelled):
            break
        assert exit.kind == "halt", f"exit {len(seen)} is {exit.describe()}"
        seen.append(HALT)
    for number, (mine, step) in enumerate(zip(seen, wanted, strict=False)):
        assert _matches(mine, step), f"exit {number} is {_text(mine)}, expected {_text(step)}"
    assert len(seen) == len(wanted), f"{len(seen)} exits, expected {len(wanted)}"


def _interrupted(bench: Bench, wanted: list[Seen]) -> None:
    """Stop as often as can be: what the guest does is the same all the while."""
    chance = random.Random(len(wanted))
    script = _Answers(wanted)
    end_is_access = wanted[-1] is not HALT

    def stop_sometimes(number: int) -> None:
        if (end_is_access and number == len(wanted) - 1) or chance.random() < 0.3:
            bench.vcpu.stop_here(Cancelled())

    script.on_access = stop_sometimes
    budgets = bench.backend.capabilities.insn_budget
    for _ in range(20 * len(wanted) + 2000):
        if chance.random() < 0.1:
            bench.vcpu.cancel()
        limit = chance.randrange(1, 6) if budgets and chance.random() < 0.4 else None
        if chance.random() < 0.5:
            exit = bench.run_inline(script, max_insns=limit)
        else:
            exit = bench.run(max_insns=limit)
            script.take(exit)
        if chance.random() < 0.2:
            bench.vcpu.state()
        if exit.kind == "halt" or (end_is_access and len(script.seen) == len(wanted)):
            break
        assert isinstance(exit, (Access, Cancelled, BudgetSpent)), (
            f"after {len(script.seen)} exits: {exit.describe()}"
        )
    else:
        raise AssertionError(f"no end after {len(script.seen)} exits")
    seen = script.seen if end_is_access else [*script.seen, HALT]
    for number, (mine, step) in enumerate(zip(seen, wanted, strict=False)):
        assert _matches(mine, step), f"exit {number} is {_text(mine)}, expected {_text(step)}"
    assert len(seen) == len(wanted), f"{len(seen)} exits, expected {len(wanted)}"


class _Answers(Script):
    """A script whose answers go by the number of the access, however it is made."""

    def __init__(self, wanted: list[Seen]) -> None:
        super().__init__()
        self._wanted = wanted

    def _answer(self, kind: str, address: int, size: int) -> int:
        at = len(self.seen)
        self.answers = [self._wanted[at][3]] if at < len(self._wanted) else []
        return super()._answer(kind, address, size)

    def take(self, exit: Exit) -> None:
        """An access of `Vcpu.run`, answered as the handler would have."""
        kept, self.on_access = self.on_access, None
        if isinstance(exit, ReadAccess):
            exit.reply(self._answer(exit.kind, exit.address, exit.size))
        elif isinstance(exit, WriteAccess):
            self.seen.append((exit.kind, exit.address, exit.size, exit.value))
        self.on_access = kept


def _compare_end(bench: Bench, case: Case) -> None:
    registers = bench.vcpu.registers()
    after = {"rip": CODE + len(bench.code), **case.after}
    for name, value in after.items():
        seen = getattr(registers, name)
        assert seen == value, f"at the end {name} is {seen:#x}, expected {value:#x}"
    for gpa, data in case.stored.items():
        stored = bench.memory.read(gpa, len(data))
        assert stored == data, f"at the end {gpa:#x} has {stored.hex(' ')}, expected {data.hex(' ')}"
