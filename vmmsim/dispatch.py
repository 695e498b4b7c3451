"""The dispatcher: answers a guest's accesses from the buses, counts them, remembers the last.

This is the hot path of `Machine.run`: the four functions of a dispatcher are called once
for each access, by both backends. They are closures, so that everything they touch is a
local of theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .exits import (
    ACCESS_EXITS,
    Access,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortRead,
    PortWrite,
    ReadAccess,
)

if TYPE_CHECKING:
    from .bus import Bus
    from .snapshot.history import History

__all__ = ["HISTORY", "ByHand", "Dispatcher", "Observer"]

#: How many accesses a post-mortem shows.
HISTORY = 32

#: Told of each access once it is done: (exit class, address, size, value).
Observer = Callable[[type[Access], int, int, int], None]


class Dispatcher:
    """`port_read`, `port_write`, `mmio_read`, `mmio_write`: see `backends.base.AccessHandler`.

    `history` holds the last accesses as (exit class, address, size, value). `failed` is
    the access whose device raised, as (exit class, address, size), until it is cleared.
    """

    port_read: Callable[[int, int], int]
    port_write: Callable[[int, int, int], None]
    mmio_read: Callable[[int, int], int]
    mmio_write: Callable[[int, int, int], None]

    def __init__(self, ports: Bus, mmio: Bus, observers: list[Observer] | None = None) -> None:
        self.history: deque[tuple[type[Access], int, int, int]] = deque(maxlen=HISTORY)
        self.failed: tuple[type[Access], int, int] | None = None
        self._observers = observers if observers is not None else []
        #: Who has the platform's MSRs: something with `msr_read` and `msr_write`.
        self.msrs: Any = None
        self._msr_counts: dict[type[Access], int] = {MsrRead: 0, MsrWrite: 0}
        self._by_hand: dict[type[Access], int] = {}
        self.port_read, self._port_reads = self._reader(PortRead, ports)
        self.port_write, self._port_writes = self._writer(PortWrite, ports)
        self.mmio_read, self._mmio_reads = self._reader(MmioRead, mmio)
        self.mmio_write, self._mmio_writes = self._writer(MmioWrite, mmio)

    def msr_read(self, index: int) -> int | None:
        """RDMSR by `msrs`; None, which is #GP in the guest, without one that knows it."""
        value = self._ask_msrs(MsrRead, index, lambda: self.msrs.msr_read(index))
        if value is not None:
            self._tell(MsrRead, index, 8, value)
        return value

    def msr_write(self, index: int, value: int) -> bool:
        """As `msr_read`: False is #GP."""
        taken = bool(self._ask_msrs(MsrWrite, index, lambda: self.msrs.msr_write(index, value)))
        if taken:
            self._tell(MsrWrite, index, 8, value)
        return taken

    def _ask_msrs(self, cls: type[Access], index: int, ask: Callable[[], int | None]) -> int | None:
        if self.msrs is None:
            return None
        self._msr_counts[cls] += 1
        try:
            return ask()
        except BaseException:
            self.failed = (cls, index, 8)
            raise

    def _tell(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self.history.append((cls, address, size, value))
        for observer in self._observers:
            observer(cls, address, size, value)

    def by_hand(self, cls: type[Access], address: int, size: int, value: int) -> None:
        """An access was answered in the place of its device: count it, and tell the observers."""
        self._by_hand[cls] = self._by_hand.get(cls, 0) + 1
        self._tell(cls, address, size, value)

    def counts(self) -> dict[str, int]:
        """Accesses so far by kind; kinds that did not happen are left out."""
        numbers = (self._port_reads(), self._port_writes(), self._mmio_reads(), self._mmio_writes())
        counts = dict(zip(ACCESS_EXITS, numbers, strict=True)) | self._msr_counts
        for cls, n in self._by_hand.items():
            counts[cls] += n
        return {cls.kind: n for cls, n in counts.items() if n}

    @property
    def total(self) -> int:
        """Accesses so far."""
        others = self._port_reads() + self._port_writes() + self._mmio_reads() + self._mmio_writes()
        return others + sum(self._msr_counts.values()) + sum(self._by_hand.values())

    def around(
        self, wrap: Callable[[type[Access], Callable[..., Any]], Callable[..., Any]]
    ) -> Callable[[], None]:
        """For who needs more than an observer is told: in runs that begin from now on `wrap(kind, answer)` is
        called in the place of each answer. Returns what takes that back, in the reverse order only."""
        kinds: tuple[type[Access], ...] = (*ACCESS_EXITS, MsrRead, MsrWrite)
        inner = {cls: getattr(self, cls.kind) for cls in kinds}
        for cls, answer in inner.items():
            setattr(self, cls.kind, wrap(cls, answer))

        def undo() -> None:
            for cls, answer in inner.items():
                setattr(self, cls.kind, answer)

        return undo

    def answer(self, exit: Access) -> None:
        """Answer an exit of `Vcpu.run` from the buses."""
        if isinstance(exit, MsrRead):
            value = self.msr_read(exit.address)
            if value is None:
                exit.fault()
            else:
                exit.reply(value)
            return
        if isinstance(exit, MsrWrite):
            if self.msr_write(exit.address, exit.value):
                exit.reply()
            else:
                exit.fault()
            return
        port = exit.space == "port"
        if isinstance(exit, ReadAccess):
            read = self.port_read if port else self.mmio_read
            exit.reply(read(exit.address, exit.size))
        else:
            write = self.port_write if port else self.mmio_write
            write(exit.address, exit.size, exit.value)  # type: ignore[attr-defined]
            exit.reply()  # type: ignore[attr-defined]

    def _reader(self, cls: type[Access], bus: Bus) -> tuple[Callable[[int, int], int], Callable[[], int]]:
        count = 0
        plans, plan = bus.readers, bus.plan_read
        remember, observers = self.history.append, self._observers

        def read(address: int, size: int) -> int:
            nonlocal count
            count += 1
            try:
                try:
                    device_read, offset, too_wide = plans[size][address]
                except KeyError:
                    device_read, offset, too_wide = plan(address, size)
                value = device_read(offset, size)
                if value & too_wide:
                    raise ValueError(f"{value:#x} does not answer a {size}-byte read")
            except BaseException:
                self.failed = (cls, address, size)
                raise
            remember((cls, address, size, value))
            if observers:
                for observer in observers:
                    observer(cls, address, size, value)
            return value

        return read, lambda: count

    def _writer(
        self, cls: type[Access], bus: Bus
    ) -> tuple[Callable[[int, int, int], None], Callable[[], int]]:
        count = 0
        plans, plan = bus.writers, bus.plan_write
        remember, observers = self.history.append, self._observers

        def write(address: int, size: int, value: int) -> None:
            nonlocal count
            count += 1
            remember((cls, address, size, value))
            try:
                try:
                    device_write, offset = plans[size][address]
                except KeyError:
                    device_write, offset = plan(address, size)
                device_write(offset, size, value)
            except BaseException:
                self.failed = (cls, address, size)
                raise
            if observers:
                for observer in observers:
                    observer(cls, address, size, value)

        return write, lambda: count


class ByHand:
    """An AccessHandler over `devices` that gives the answers of `history` again, each at its access."""

    def __init__(self, devices: Dispatcher, history: History) -> None:
        self._devices = devices
        self._history = history

    def _given(self) -> bool:
        return self._history.exits in self._history.answers

    def _tell(self, cls: type[Access], address: int, size: int, value: int | None = None) -> int:
        answer = value if value is not None else self._history.answers[self._history.exits] or 0
        self._devices.by_hand(cls, address, size, answer)
        return answer

    def port_read(self, port: int, size: int, /) -> int:
        return self._tell(PortRead, port, size) if self._given() else self._devices.port_read(port, size)

    def mmio_read(self, gpa: int, size: int, /) -> int:
        return self._tell(MmioRead, gpa, size) if self._given() else self._devices.mmio_read(gpa, size)

    def msr_read(self, index: int, /) -> int | None:
        return self._tell(MsrRead, index, 8) if self._given() else self._devices.msr_read(index)

    def port_write(self, port: int, size: int, value: int, /) -> None:
        if self._given():
            self._tell(PortWrite, port, size, value)
        else:
            self._devices.port_write(port, size, value)

    def mmio_write(self, gpa: int, size: int, value: int, /) -> None:
        if self._given():
            self._tell(MmioWrite, gpa, size, value)
        else:
            self._devices.mmio_write(gpa, size, value)

    def msr_write(self, index: int, value: int, /) -> bool:
        if self._given():
            self._tell(MsrWrite, index, 8, value)
            return True
        return self._devices.msr_write(index, value)
