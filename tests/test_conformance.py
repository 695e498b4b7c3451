"""Every backend keeps the contract, check by check; and the suite itself finds what it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import capstone
import pytest

from vmmsim import models
from vmmsim.backends import open_backend
from vmmsim.backends.base import Backend
from vmmsim.bus import Device
from vmmsim.clock import ExitClock
from vmmsim.config import MachineConfig
from vmmsim.diff import divergences
from vmmsim.streams import BufferSink, BytesSource
from vmmsim.testing import (
    CHECKS,
    DEVICE_CHECKS,
    Check,
    DeviceCheck,
    NotApplicable,
    cases_mmio,
    cases_port,
    cases_rmw,
    run_backend_conformance,
    run_device_conformance,
)
from vmmsim.testing.bench import CODE, listing, listing_source
from vmmsim.testing.cases import Case
from vmmsim.wiring import Wiring

ALL_CASES = (*cases_port.CASES, *cases_mmio.CASES, *cases_rmw.CASES)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_backend(backend: Backend, check: Check) -> None:
    try:
        check.run(backend)
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_the_one_call_runs_them_all(backend_name: str) -> None:
    names = [check.name for check in CHECKS[:5]] + ["instruction_budgets_one_by_one"]
    results = run_backend_conformance(lambda: open_backend(backend_name)[0], only=names)
    assert [result.name for result in results] == names
    assert {result.outcome for result in results} <= {"passed", "not applicable"}


def test_each_backend_of_the_suite_is_closed() -> None:
    opened: list[Backend] = []
    closed: list[Backend] = []

    def factory() -> Backend:
        backend = open_backend("unicorn")[0]
        backend.close = lambda: closed.append(backend)  # type: ignore[method-assign]
        opened.append(backend)
        return backend

    run_backend_conformance(factory, only=[check.name for check in CHECKS[:2]])
    assert len(opened) == 2
    assert closed == opened


def test_check_names_are_unique() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))
    assert all(check.about for check in CHECKS)


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_a_listing_says_what_its_bytes_do(case: Case) -> None:
    bits = 16 if case.modes[0] in ("real", "p16") else 64 if case.modes[0].startswith("l64") else 32
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    lines = [line for line in case.code.splitlines() if line.strip() and not line.strip().endswith(":")]
    instructions = list(capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(listing(case.code), CODE))
    assert len(instructions) == len(lines)
    aliases = {"setc": "setb"}
    for line, instruction in zip(lines, instructions, strict=True):
        source = listing_source(line)
        assert listing(line) == instruction.bytes, source
        words = source.split()
        wanted = " ".join(words[:2]) if words[0] in ("rep", "repe", "repne", "lock") else words[0]
        assert instruction.mnemonic == aliases.get(wanted, wanted), source


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_a_case_that_differs_somewhere_cites_its_divergence(case: Case) -> None:
    assert bool(case.instead) == bool(case.divergence)
    if case.divergence:
        entry = divergences()[case.divergence]
        assert entry.test.startswith(case.name)


# -- the suite finds what is wrong


@pytest.mark.unicorn
@pytest.mark.parametrize(
    ("field", "value", "found_by"),
    [("size", 4, "port_widths[p32]"), ("value", 0x77, "port_widths[p32]")],
)
def test_a_wrong_exit_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch, field: str, value: int, found_by: str
) -> None:
    opened, _ = open_backend("unicorn")
    vcpu_class: Any = type(opened.create_vm().create_vcpu())
    right: Callable[..., Any] = vcpu_class.run

    def run(self: Any, **arguments: Any) -> Any:
        exit = right(self, **arguments)
        if exit.kind == "port_write":
            setattr(exit, field, value)
        return exit

    monkeypatch.setattr(vcpu_class, "run", run)
    with pytest.raises(AssertionError, match=r"port_widths\[p32\], one at a time: exit 1 is") as caught:
        run_backend_conformance(lambda: opened, only=[found_by])
    assert "1 of 1 conformance checks failed" in str(caught.value)


# -- devices


def _factory(name: str) -> Callable[..., Device]:
    """A device of the models with resources of its own: fixed input, a seeded random source."""
    import random

    def make(state: Any = None) -> Device:
        wiring = Wiring(
            source=BytesSource(b"hello, device"),
            sink=BufferSink(),
            random=random.Random(1),
            clock=ExitClock(),
            devices={},
            on_exit=lambda code: None,
            on_event=lambda event: None,
            config=MachineConfig(),
        )
        fresh = models.DEVICES[name].make(wiring)
        if state is None:
            return fresh
        resources = {
            "uart": {"source": wiring.source, "sink": wiring.sink},
            "char-in": {"source": wiring.source},
            "char-out": {"sink": wiring.sink},
            "debug-console": {"sink": wiring.sink},
            "random-letter": {"random": wiring.random},
            "debug-exit": {"on_exit": wiring.on_exit},
            "snapshot": {"on_snapshot": wiring.on_snapshot},
        }.get(name, {})
        return type(fresh).from_state(state, **resources)  # type: ignore[attr-defined]

    return make


@pytest.mark.parametrize("check", DEVICE_CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("name", [*models.MODELS["bare"], "scratch"])
def test_device(name: str, check: DeviceCheck) -> None:
    check.run(_factory(name), models.DEVICES[name].length)


class _Forgetful:
    """A counter whose state lacks the count: what the suite must find."""

    widths = frozenset({1})
    length = 1

    def __init__(self, state: Any = None) -> None:
        self._count = 0

    def read(self, offset: int, size: int, /) -> int:
        self._count = (self._count + 1) & 0xFF
        return self._count

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._count = value

    def state(self) -> dict[str, int]:
        return {"count": self._count}


class _TooWide(_Forgetful):
    def read(self, offset: int, size: int, /) -> int:
        return 0x100


@pytest.mark.parametrize(
    ("device", "check"),
    [(_Forgetful, "restoring_gives_the_state_back"), (_TooWide, "every_access_is_answered")],
)
def test_a_wrong_device_is_found_and_named(device: type, check: str) -> None:
    with pytest.raises(AssertionError, match=check):
        run_device_conformance(device)
