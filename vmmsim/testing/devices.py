"""The device conformance suite: what the bus, snapshots and clones rely on in any device.

A factory makes the device: `factory()` at power-on, `factory(state)` from a state. Its
resources (sources, sinks, lines) are the factory's business; each call gets fresh ones, so
that two devices made alike behave alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ..bus import Device
from .checks import Result

__all__ = ["DEVICE_CHECKS", "DeviceCheck", "DeviceFactory", "run_device_conformance"]

#: Accesses in each random script.
_STEPS = 400


class DeviceFactory(Protocol):
    """Makes a device: `factory()` at power-on, `factory(state)` restored."""

    def __call__(self, state: Any = None, /) -> Device: ...


class DeviceCheck(msgspec.Struct, frozen=True):
    """One named check of a device of `length` addresses. `run` raises AssertionError."""

    name: str
    about: str
    run: Callable[[DeviceFactory, int], None]


_CHECKS: list[DeviceCheck] = []


def _check(function: Callable[[DeviceFactory, int], None]) -> Callable[[DeviceFactory, int], None]:
    about = (function.__doc__ or "").strip().split("\n")[0]
    _CHECKS.append(DeviceCheck(function.__name__, about, function))
    return function


def _script(device: Device, length: int, seed: int) -> list[tuple[bool, int, int, int]]:
    """Random accesses within the device: (is_write, offset, size, value)."""
    chance = random.Random(seed)
    widths = [width for width in sorted(device.widths) if width <= length] or [min(device.widths)]
    steps = []
    for _ in range(_STEPS):
        size = chance.choice(widths)
        offset = chance.randrange(max(1, length - size + 1))
        value = chance.choice((0, 1, (1 << 8 * size) - 1, chance.getrandbits(8 * size)))
        steps.append((chance.random() < 0.5, offset, size, value))
    return steps


def _play(device: Device, steps: list[tuple[bool, int, int, int]]) -> list[int]:
    """Do the accesses; the answers of the reads."""
    answers = []
    for number, (is_write, offset, size, value) in enumerate(steps):
        if is_write:
            device.write(offset, size, value)
            continue
        answer = device.read(offset, size)
        assert isinstance(answer, int), f"access {number}: a read of {offset:#x} answered {answer!r}"
        assert 0 <= answer < 1 << 8 * size, (
            f"access {number}: a {size}-byte read of {offset:#x} answered {answer:#x}"
        )
        answers.append(answer)
    return answers


def _state(device: Any) -> Any:
    return device.state()


@_check
def widths_are_declared(factory: DeviceFactory, length: int) -> None:
    """`widths` is a frozenset of some of 1, 2, 4 and 8."""
    widths = factory().widths
    assert isinstance(widths, frozenset), f"widths is a {type(widths).__name__}"
    assert widths, "no widths"
    assert widths <= {1, 2, 4, 8}, f"widths are {sorted(widths)}"


@_check
def every_access_is_answered(factory: DeviceFactory, length: int) -> None:
    """Whatever a guest reads and writes, the device raises nothing and answers in range."""
    for seed in range(5):
        device = factory()
        _play(device, _script(device, length, seed))


@_check
def state_is_a_plain_value(factory: DeviceFactory, length: int) -> None:
    """The state compares, survives JSON, and holds no resource."""
    device = factory()
    _play(device, _script(device, length, 6))
    state = _state(device)
    decoded = msgspec.json.decode(msgspec.json.encode(state), type=type(state))
    assert decoded == state, f"through JSON {state} became {decoded}"
    assert _state(device) == state, "state() twice gives two states"


@_check
def state_is_not_a_view(factory: DeviceFactory, length: int) -> None:
    """A state that was taken does not change when the device goes on."""
    device = factory()
    state = _state(device)
    copy = msgspec.json.encode(state)
    _play(device, _script(device, length, 7))
    assert msgspec.json.encode(state) == copy, "the state changed after it was taken"


@_check
def devices_made_alike_are_alike(factory: DeviceFactory, length: int) -> None:
    """Two new devices have one state and answer one script alike."""
    one, two = factory(), factory()
    assert _state(one) == _state(two)
    steps = _script(one, length, 8)
    assert _play(one, steps) == _play(two, steps)
    assert _state(one) == _state(two)


@_check
def restoring_gives_the_state_back(factory: DeviceFactory, length: int) -> None:
    """`factory(state).state()` is the state, at power-on and after use."""
    for seed in range(9, 14):
        device = factory()
        assert _state(factory(_state(device))) == _state(device), "at power-on"
        _play(device, _script(device, length, seed)[: seed * 20])
        state = _state(device)
        assert _state(factory(state)) == state, f"after {seed * 20} accesses"


@_check
def a_restored_device_goes_on_alike(factory: DeviceFactory, length: int) -> None:
    """Restored from one state, two devices answer the rest of a script alike."""
    for seed in range(14, 19):
        device = factory()
        steps = _script(device, length, seed)
        _play(device, steps[: _STEPS // 2])
        state = _state(device)
        one, two = factory(state), factory(state)
        rest = steps[_STEPS // 2 :]
        assert _play(one, rest) == _play(two, rest)
        assert _state(one) == _state(two)


#: Every check, in order.
DEVICE_CHECKS: tuple[DeviceCheck, ...] = tuple(_CHECKS)


def run_device_conformance(factory: DeviceFactory, *, length: int | None = None) -> list[Result]:
    """Run every check on the device that `factory` makes. `length` is how many addresses it
    takes; without it the device's own `length` attribute says so, or it is 1.

    Returns a Result for each. Raises AssertionError naming every check that failed.
    """
    if length is None:
        length = int(getattr(factory(), "length", 1))
    results = []
    for check in DEVICE_CHECKS:
        try:
            check.run(factory, length)
        except Exception as error:
            results.append(Result(check.name, "failed", f"{type(error).__name__}: {error}"))
        else:
            results.append(Result(check.name, "passed"))
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        raise AssertionError(
            f"{len(failed)} of {len(results)} device checks failed:\n"
            + "\n".join(f"{result.name}: {result.note}" for result in failed)
        )
    return results
