"""Machine: memory, buses, vCPUs and devices, and the run loop over them.

Knows no backend and no device by name: a backend is opened by `vmmsim.backends`, devices
come from the table in `vmmsim.models`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from . import layout, models
from .backends import open_backend
from .backends.base import Backend, VmOptions
from .board import Chipset, InterruptBoard, MachineTime
from .budget import Budget
from .config import MachineConfig
from .dispatch import Observer
from .errors import DeviceError, GuestError, ImageError, UsageError, VmmsimError
from .exits import Access, Breakpoint, BudgetSpent, Cancelled, Exit, GuestExit, Halt, SystemEvent
from .memory import PAGE_SIZE
from .outcome import Outcome, outcome
from .processor import Processor
from .processors import Processors
from .signals import DeferredSignals
from .stops import Until, budget_observer, until_observer
from .streams import BufferSink, QueueSource, TeeSink
from .travel import Gate, Pause, TimeTravel

if TYPE_CHECKING:
    from .chassis import Maker
    from .devices.base import CharSink, CharSource
    from .expect import SerialConsole
    from .guests import Guest
    from .loaders import LoadedImage
    from .snapshot.values import Identity, Snapshot

__all__ = ["Machine"]

_OUTPUT_KEPT = 16 << 20
#: Ends of a run that are no exit of their own: an access is counted as it is answered, and
#: the others are made by the VMM.
_NOT_COUNTED = (Access, Breakpoint, BudgetSpent, Cancelled, GuestExit, SystemEvent)
#: Ends behind which a run goes on where it was, as serial.expect may.
_GOES_ON = (Access, Breakpoint, BudgetSpent, Cancelled)

#: IA32_APIC_BASE, IA32_TSC_DEADLINE and those of x2APIC, as (first, count).
_APIC_MSRS = ((0x1B, 1), (0x6E0, 1), (0x800, 0x40))


class Machine(TimeTravel):
    """A guest's machine. A context manager; `close()` frees the host's resources.

    `backend` is a name (`auto`, `kvm`, `unicorn`) or an opened Backend. `source` and
    `sink` are the two ends of the guest's characters; without them input comes from
    `serial.send` and output is kept in `output`. `replace` puts devices in the places of the
    model's: name -> what makes one from a `vmmsim.wiring.Wiring`. Further keywords are fields of
    MachineConfig. Raises UsageError, BackendUnavailable, HostError.
    """

    def __init__(
        self,
        config: MachineConfig | None = None,
        *,
        backend: str | Backend = "auto",
        source: CharSource | None = None,
        sink: CharSink | None = None,
        replace: Mapping[str, Maker] | None = None,
        **fields: Any,
    ) -> None:
        config = config or MachineConfig()
        if fields:
            config = msgspec.structs.replace(config, **fields)
        self._owns_backend = isinstance(backend, str)
        if isinstance(backend, str):
            self.backend, self.backend_choice = open_backend(backend)
        else:
            self.backend, self.backend_choice = backend, f"{backend.name} (given)"

        #: The output of the guest, whatever sink it also went to: at least its last 16 MiB.
        self.output = BufferSink(limit=_OUTPUT_KEPT)
        self.last_exit: Exit | None = None
        self.seconds = 0.0
        #: The ends of runs that the guest's code or the CPU made, by kind.
        self._end_counts: dict[str, int] = {}
        self.source = source if source is not None else QueueSource()
        self._on_output: Callable[[], None] | None = None
        self._output_observers: list[Callable[[bytes], None]] = []
        self._halt_observers: list[Callable[[int], None]] = []
        self._inline = self._answering = False
        self._running = False
        self._single: int | None = None
        self._stop: Exit | None = None
        self._spent: Budget | None = None
        self._serial: SerialConsole | None = None
        self._begin_time()
        self._chipset: Chipset | None = None
        sinks: list[CharSink] = [self.output, _Notify(self)]
        try:
            super().__init__(
                config,
                source=self.source,
                sink=Gate(self, TeeSink(*sinks, *([sink] if sink is not None else []))),
                on_exit=lambda code: self.request_stop(GuestExit(code)),
                on_event=lambda event: self.request_stop(SystemEvent(event)),
                on_snapshot=self._asked,
                generation=lambda: self.generation,
                replace=replace,
            )
            self.vm = self.backend.create_vm(self._vm_options())
            self.memory.attach(self.vm, self._settle, self._check_vacant)
            self._unobserve: Callable[[], None] = lambda: None
            vcpus = [Processor(number, self.vm.create_vcpu()) for number in range(config.cpus)]
            # Not asked for one: what a KVM can do is found out by running guests.
            parallel = config.cpus > 1 and self.backend.capabilities.parallel_vcpus
            self.processors = Processors(vcpus, parallel=parallel, on_halt=self._halted)
            self._connect()
        except BaseException:
            self.close()
            raise
        #: The first vCPU, which starts the others, and its registers as attributes.
        self.vcpu = self.processors.items[0].vcpu
        self.cpu = self.processors.items[0].cpu

    def _vm_options(self) -> VmOptions:
        config = self.config
        apic = "lapic" in models.names(config)
        return VmOptions(
            watchdog_seconds=config.watchdog_seconds,
            count_insns=config.count_insns or config.clock == "insns",
            exact_interrupts=self.clock.deterministic,
            vcpus=config.cpus,
            apic=apic,
            msrs=_APIC_MSRS if apic else (),
        )

    def _connect(self) -> None:
        """Give each vCPU its interrupt controller, if the machine has any: at first, and when the
        devices were made anew."""
        pic: Any = self.devices.get("pic")
        lapics: Any = self.devices.get("lapic")
        self._unobserve()
        self.accesses.msrs = lapics
        chipset, time = None, MachineTime(self.clock)
        if pic is not None or lapics is not None:
            inputs = [device for device in self.devices.values() if hasattr(device, "poll")]
            time = chipset = Chipset(self.clock, inputs, self.source, self.processors.call)
            for item in self.processors:
                if lapics is not None:
                    apic = lapics[item.number]
                    item.connect(InterruptBoard(chipset, apic, apic.cr8_written))
                else:
                    item.connect(InterruptBoard(chipset, pic))
        if self.clock.deterministic:
            self._unobserve = self.observe(time.observe)
        self._chipset = chipset
        self.processors.connect(time, chipset)
        self._wiring.cpus = self.processors

    # -- loading

    def load(self, image: LoadedImage) -> None:
        """Put an image into memory and the vCPU into its mode at its entry.

        The tables of a protected or long mode lie at `layout.BOOT_TABLES`, or where the image
        is there, behind it. Raises ImageError when something does not fit; nothing is written
        then."""
        from .cpu.modes import setup

        wanted = setup(image.mode, image.entry, self.memory.size, tables=_tables_beside(image))
        for gpa, data in wanted.writes:
            if not self.memory.contains(gpa, len(data)):
                raise ImageError(
                    f"mode {image.mode} keeps its tables at {gpa:#x}..{gpa + len(data) - 1:#x}, "
                    "where this machine has no memory",
                    hint="give the machine more memory with -m, or start in mode real",
                )
        state = image.enter(wanted.state)
        image.place(self.memory)
        for gpa, data in wanted.writes:
            self.memory.write(gpa, data)
        for port, value in image.port_writes:
            self.ports.write(port, 1, value)
        self.vcpu.set_state(state)
        self.processors.started()

    def load_guest(self, name: str) -> Guest:
        """Load one of the built-in guests (`vmmsim guests`) by name, with its input."""
        from .guests import load

        guest = load(name)
        wanted = list(guest.devices)
        if guest.manifest.model not in ("bare", self.config.model):
            wanted += models.MODELS[guest.manifest.model]
        missing = [d for d in wanted if d not in self.devices]
        if missing:
            raise UsageError(
                f"guest '{name}' needs the device {', '.join(missing)}, which this machine lacks",
                hint="make the machine with Machine.for_guest(name)",
            )
        self.load(guest.image)
        return guest

    @classmethod
    def from_snapshot(
        cls,
        snapshot: Snapshot,
        *,
        backend: str | Backend = "auto",
        source: CharSource | None = None,
        sink: CharSink | None = None,
        rewind: bool = True,
        count_insns: bool = False,
        identity: Identity | None = None,
        replace: Mapping[str, Maker] | None = None,
    ) -> Machine:
        """A new machine that goes on where `snapshot` was taken.

        Its memory is the snapshot's pages, copy-on-write. `rewind`: see `restore`; without it
        `source` has what comes next. With an `identity` it is a clone (`Snapshot.clone`).
        """
        config = snapshot.config
        if count_insns:
            config = msgspec.structs.replace(config, count_insns=True)
        machine = cls(config, backend=backend, source=source, sink=sink, replace=replace)
        try:
            machine.restore(snapshot, rewind=rewind)
            if identity is not None:
                machine.generation = identity.of(snapshot)
                identity.shuffle(machine.random)
        except BaseException:
            machine.close()
            raise
        return machine

    @classmethod
    def for_guest(cls, name: str, **arguments: Any) -> Machine:
        """A machine as the built-in guest `name` needs it, with the guest loaded; `arguments` win."""
        from .guests import load

        guest = load(name)
        machine = cls(**{**guest.machine, **arguments})
        try:
            machine.load(guest.image)
        except BaseException:
            machine.close()
            raise
        return machine

    # -- running

    def run(self, *, until: Until | None = None, budget: Budget | tuple[Budget, ...] | None = None) -> Exit:
        """Run with the devices answering, until something ends it; returns that exit.

        Halt, Shutdown, GuestExit and the like end every run; `until` ends it also at an
        access: after the instruction that made it. `budget` limits the run, one or several
        of `insns(n)`, `exits(n)`, `seconds(s)`; spent, the run ends with BudgetSpent.
        Raises DeviceError when a device raised, KeyboardInterrupt for Ctrl-C, NotSupported
        for a budget that this backend cannot count.
        """
        self._check_idle()
        self._tell_ends("rearm")
        budgets = (budget,) if isinstance(budget, Budget) else tuple(budget or ())
        limits = {b.unit: b for b in budgets}
        observers: list[Observer] = []
        if until is not None:
            observers.append(until_observer(self.request_stop, until))
        if "exits" in limits:
            observers.append(budget_observer(self.request_stop, limits["exits"]))
        self._observers += observers
        timer = None
        self._spent = self._stop = self.accesses.failed = None
        if "seconds" in limits:
            timer = threading.Timer(limits["seconds"].amount, self._out_of_time, (limits["seconds"],))
            timer.daemon = True
        max_insns = int(limits["insns"].amount) if "insns" in limits else None
        began = time.perf_counter()
        try:
            with DeferredSignals(self.cancel, self._uncancel):
                if timer is not None:
                    timer.start()
                try:
                    exit = self._run_on(max_insns)
                finally:
                    if timer is not None:
                        timer.cancel()
                        timer.join()  # or its cancel could come in the next run
        except (KeyboardInterrupt, SystemExit):
            self.last_exit = Cancelled()
            raise
        except VmmsimError:
            raise
        except Exception as error:
            if self.accesses.failed is None:  # an observer's, or the caller's `until`
                raise
            raise self._device_error(self.accesses.failed, error) from error
        finally:
            self.seconds += time.perf_counter() - began
            for observer in observers:
                self._observers.remove(observer)
            if self._spent is not None:  # perhaps just when the run had ended by itself
                self._uncancel()
        if isinstance(exit, Cancelled) and self._spent is not None:
            exit = BudgetSpent(self._spent.unit, self._spent.amount)
        self.last_exit = exit
        if not isinstance(exit, Halt):  # which was counted when it came
            self._count_end(exit)
        return exit

    def step(self, cpu: int = 0) -> Exit:
        """Exactly one instruction of vCPU `cpu`, with the devices answering; BudgetSpent, or the exit
        that it came to. A vCPU that has halted waits for its interrupt; one that was not started does
        nothing. Breakpoints are ignored. NotSupported, with the reason, where the CPU has no single step.
        """
        if not 0 <= cpu < len(self.processors.items):
            raise UsageError(f"there is no vCPU {cpu}", hint="they are numbered from 0")
        self._single = cpu
        try:
            return self.run()
        finally:
            self._single = None

    def _run_on(self, max_insns: int | None) -> Exit:
        """Run to an end that is no `between`, of which each is done on the way."""
        left, single = max_insns, self._single
        while True:
            began = self.processors.insns()
            self._running = self._inline = True
            try:
                with self.watched():
                    if single is None:
                        exit = self.processors.run(self._answers(), left)
                    else:
                        exit = self.processors.run_one(single, self._answers())
            finally:
                self._running = self._inline = False
            if left is not None:
                left = max(1, left - (self.processors.insns() - began))
            if isinstance(exit, Pause):
                exit, self._stop = exit.then or exit, None
                if single is not None and isinstance(exit, Pause):
                    exit = BudgetSpent("insns", 1)
            self._do_between()
            if not isinstance(exit, Pause):
                return exit

    def exits(self) -> Iterator[Exit]:
        """Every exit, one at a time: the KVM_RUN loop.

        At a read, `exit.reply(value)` answers it; at a write, `exit.reply()` says that it is
        dealt with. What the caller leaves unanswered is given to the devices when the loop
        goes on. Ends after the first exit that is not an access. With several vCPUs
        `processors.current` is the number of the one that made the exit.
        """
        with contextlib.ExitStack() as watch:
            watch.enter_context(self.watched())
            while True:
                restored = self._restored
                exit = self.step_exit()
                yield exit
                if restored != self._restored:  # it was of another time, by another clock
                    watch.close()
                    watch.enter_context(self.watched())
                    continue
                if self.processors.goes_on(exit):
                    continue
                if not isinstance(exit, Access):
                    return
                if not exit.answered:
                    stop = self.answer(exit)
                    if stop is not None:
                        self.last_exit = stop
                        yield stop
                        return

    def watched(self) -> contextlib.AbstractContextManager[object]:
        """Around `step_exit`, as around a run: the host's clock, if that is the machine's, is heeded."""
        return self._chipset or contextlib.nullcontext()

    def step_exit(self, *, single: bool = False) -> Exit:
        """Run to the next exit, whatever it is, and return it unanswered. `single`: run one instruction of
        the vCPU whose turn it is; BudgetSpent if it has made no exit. NotSupported as by `step`."""
        self._check_idle()
        self._tell_ends("rearm")
        self._running = True
        began = time.perf_counter()
        try:
            with DeferredSignals(self.cancel, self._uncancel):
                exit = self.processors.step_single() if single else self.processors.step()
        finally:
            self._running = False
            self.seconds += time.perf_counter() - began
        self.last_exit = exit
        self._count_end(exit)
        return exit

    def _halted(self, exit: Exit, number: int) -> None:
        self._count_end(exit)
        for observer in self._halt_observers:
            observer(number)

    def observe_halts(self, observer: Callable[[int], None]) -> Callable[[], None]:
        """Tell `observer` of each HLT of a run, by the number of its vCPU, which may be looked at: it is in
        that vCPU's thread. Returns what takes it away again."""
        self._halt_observers.append(observer)
        return lambda: self._halt_observers.remove(observer)

    def observe_output(self, observer: Callable[[bytes], None]) -> Callable[[], None]:
        """Give `observer` what the guest prints, in the access that prints it. Returns what takes it away."""
        self._output_observers.append(observer)
        return lambda: self._output_observers.remove(observer)

    def _count_end(self, exit: Exit) -> None:
        if not isinstance(exit, _NOT_COUNTED):
            self._end_counts[exit.kind] = self._end_counts.get(exit.kind, 0) + 1

    def answer(self, exit: Access) -> Exit | None:
        """Let the devices answer an exit of `step_exit`. Returns the exit that a device asked
        the machine to end with, if one did. Raises DeviceError when a device raised; a read
        is then answered with all ones."""
        self._forget_answers()
        self._stop = self.accesses.failed = None
        self._answering = True
        try:
            self.accesses.answer(exit)
        except VmmsimError:
            raise
        except Exception as error:
            if exit.is_write:
                exit.reply()  # type: ignore[attr-defined]
            else:
                exit.reply((1 << 8 * exit.size) - 1)  # type: ignore[attr-defined]
            if self.accesses.failed is None:
                raise
            raise self._device_error(self.accesses.failed, error) from error
        finally:
            self._answering = False
        stop = self._stop
        self._finish_between()
        return stop

    def request_stop(self, exit: Exit) -> None:
        """For devices: end the run with `exit` after the instruction being answered. Of
        several that ask in one instruction the first has it."""
        if isinstance(self._stop, Pause):
            self._stop.then = self._stop.then or exit
        elif self._stop is None:
            self._stop = exit
            if self._inline:
                self.processors.stop_here(exit)

    def cancel(self) -> None:
        """From any thread: end the current run with Cancelled at an instruction boundary."""
        self.processors.cancel()
        self._tell_ends("interrupt")

    def _uncancel(self) -> None:
        self.processors.uncancel()

    def _tell_ends(self, what: str) -> None:
        """`interrupt` what waits for a key or for a reader, or `rearm` it before a run: an
        interrupt that came when nothing waited must not end the next wait."""
        for end in (self.source, self._wiring.sink):
            tell = getattr(end, what, None)
            if tell is not None:
                tell()

    def _out_of_time(self, budget: Budget) -> None:
        self._spent = budget
        self.cancel()

    def _check_idle(self) -> None:
        if self._poisoned is not None:
            raise UsageError(
                f"the machine is undefined: {self._poisoned}",
                hint="restore a snapshot, or make another machine",
            )
        if self._running:
            raise UsageError(
                "the machine is running already", hint="one run at a time; cancel() ends the other"
            )

    def _settle(self) -> None:
        if not self._running:
            for item in self.processors:
                item.vcpu.settle()

    def _device_error(self, failed: tuple[type[Access], int, int], error: Exception) -> DeviceError:
        cls, address, size = failed
        if cls.space == "msr":
            name, where = "lapic", f"MSR {address:#x}"
        else:
            mapping = (self.ports if cls.space == "port" else self.mmio).find(address)
            name = mapping.name if mapping else "none"
            where = f"port {address:#06x}" if cls.space == "port" else f"gpa {address:#x}"
        verb = "write" if cls.is_write else "read"
        return DeviceError(
            name,
            f"a {size}-byte {verb} at {where}",
            self.processors.items[self.processors.current].vcpu.registers().rip,
            error,
        )

    # -- talking to the guest

    @property
    def serial(self) -> SerialConsole:
        """The guest's console, pexpect style: `serial.expect(b"login: ")`, `serial.send(b"root\\n")`."""
        if self._serial is None:
            from .expect import SerialConsole

            if not isinstance(self.source, QueueSource):
                raise UsageError(
                    "this machine's input comes from elsewhere, so serial.send cannot be used",
                    hint="make the machine without source=",
                )
            self._serial = SerialConsole(self._run_until, self.output, self.source)
        return self._serial

    def _run_until(self, reached: Callable[[], bool], timeout: float | None) -> None:
        if reached():
            return
        # A run behind a HLT would execute what lies there, which may be no code.
        if self.last_exit is not None and not isinstance(self.last_exit, _GOES_ON):
            raise GuestError(f"the machine has ended: {self._end_text(self.last_exit)}")
        self._on_output = lambda: self.request_stop(Cancelled()) if reached() else None
        try:
            exit = self.run(budget=Budget("seconds", timeout) if timeout is not None else None)
        finally:
            self._on_output = None
        if not isinstance(exit, (Cancelled, BudgetSpent)) and not reached():
            raise GuestError(f"the machine ended first: {self._end_text(exit)}")

    def _end_text(self, exit: Exit) -> str:
        return self.outcome(exit).panicked or exit.describe()

    # -- the end

    def outcome(self, end: Exit | DeviceError | None = None) -> Outcome:
        """The verdict on a run that ended with `end` (None: the last exit): the exit code that
        `vmmsim run` would give, and what a kernel that panicked said. The same however the run was
        started. UsageError for a machine that has not run."""
        end = end if end is not None else self.last_exit
        if end is None:
            raise UsageError("the machine has not run", hint="call run() first")
        return outcome(end, self.output.data)

    @property
    def halts(self) -> int:
        """How often a vCPU has executed HLT."""
        return self._end_counts.get(Halt.kind, 0)

    def counts(self) -> dict[str, int]:
        """Exits so far by kind, with those other than accesses that ended a run."""
        return self.accesses.counts() | self._end_counts

    def close(self) -> None:
        """Free the host's resources, with the backend unless it was given. May be called twice."""
        vm = getattr(self, "vm", None)
        if vm is not None:
            vm.close()
        self.memory.close()
        if self._owns_backend:
            self.backend.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tables_beside(image: LoadedImage) -> int:
    """Where the tables of a mode preset go: the usual place, or the next free one above."""
    at = layout.BOOT_TABLES
    for segment in sorted(image.segments, key=lambda segment: segment.gpa):
        if segment.gpa < at + layout.BOOT_TABLES_SIZE and at < segment.end:
            at = -(-segment.end // PAGE_SIZE) * PAGE_SIZE
    return at


class _Notify:
    """A sink that tells the machine that the guest has printed something."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def put(self, data: bytes, /) -> None:
        for observer in self._machine._output_observers:
            observer(data)
        if self._machine._on_output is not None:
            self._machine._on_output()
