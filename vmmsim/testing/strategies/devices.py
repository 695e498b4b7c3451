"""Scripts for a device: accesses, time, input, and snapshots in between.

`run_script` plays one and tells what a guest saw. A device that is restored from its state in the
middle must not show it: that is the property which finds a field that a state forgot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

__all__ = ["DeviceScript", "Step", "device_scripts", "interrupt_schedules", "run_script"]


class Step(msgspec.Struct, frozen=True):
    """`kind`: read and write (`offset`, `size`, `value`), time (`value` ns), input (`data`), snapshot."""

    kind: str
    offset: int = 0
    size: int = 1
    value: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        if self.kind == "read":
            return f"read {self.offset:#x} size {self.size}"
        if self.kind == "write":
            return f"write {self.offset:#x} size {self.size} = {self.value:#x}"
        return f"{self.kind} {self.data!r}" if self.kind == "input" else f"{self.kind} {self.value}".strip()


#: Steps, in their order.
DeviceScript = tuple[Step, ...]


def device_scripts(
    length: int,
    *,
    widths: Sequence[int] = (1,),
    most: int = 40,
    time: bool = True,
    input: bool = False,
    snapshots: bool = True,
) -> st.SearchStrategy[DeviceScript]:
    """Up to `most` steps for a device of `length` bytes that takes accesses of `widths`."""
    where = st.sampled_from([(offset, size) for size in widths for offset in range(length - size + 1)])
    kinds = [
        where.map(lambda at: Step("read", *at)),
        st.builds(
            lambda at, value: Step("write", at[0], at[1], value & ((1 << 8 * at[1]) - 1)),
            where, st.integers(0, 255) | st.integers(0, (1 << 64) - 1),
        ),
    ]  # fmt: skip
    if time:
        kinds.append(st.integers(1, 2_000_000_000).map(lambda ns: Step("time", value=ns)))
    if input:
        kinds.append(st.binary(min_size=1, max_size=20).map(lambda data: Step("input", data=data)))
    if snapshots:
        kinds.append(st.just(Step("snapshot")))
    return st.lists(st.one_of(kinds), max_size=most).map(tuple)


def run_script(
    script: DeviceScript,
    device: Any,
    *,
    restore: Callable[[Any], Any] | None = None,
    advance: Callable[[int], None] = lambda ns: None,
    feed: Callable[[bytes], None] = lambda data: None,
    observe: Callable[[], Any] = lambda: None,
) -> list[Any]:
    """Play `script` on `device`; what the guest saw: each read's answer, and `observe()` (the level of an
    interrupt line, say) behind each step.

    At a snapshot `restore(device.state())` gives the device to go on with; None: nothing is done. So a
    run with `restore` and one without must give the same list.
    """
    seen: list[Any] = []
    for step in script:
        if step.kind == "read":
            seen.append(device.read(step.offset, step.size))
        elif step.kind == "write":
            device.write(step.offset, step.size, step.value)
        elif step.kind == "time":
            advance(step.value)
        elif step.kind == "input":
            feed(step.data)
        elif restore is not None:
            device = restore(device.state())
        seen.append(observe())
    return seen


def interrupt_schedules(
    lines: int = 16, *, most: int = 30, span: int = 10_000
) -> st.SearchStrategy[tuple[tuple[int, int, bool], ...]]:
    """When interrupt lines change: (time, line, level), ascending in time, below `span` (instructions,
    exits, or whatever the test counts in). Each change is one: no line is set to the level it has."""
    change = st.tuples(st.integers(0, span - 1), st.integers(0, lines - 1))

    def build(drawn: list[tuple[int, int]]) -> tuple[tuple[int, int, bool], ...]:
        levels = [False] * lines
        schedule = []
        for when, line in sorted(drawn):
            levels[line] = not levels[line]
            schedule.append((when, line, levels[line]))
        return tuple(schedule)

    return st.lists(change, max_size=most).map(build)
