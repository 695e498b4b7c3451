"""`vmmsim demo`: what a VMM does, in seven steps, shown with real exits of the CPUs here."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from .. import layout
from ..backends import REGISTRY, availability, open_backend
from ..backends.base import Backend
from ..cpu.state import Registers
from ..disasm import CodeReader, ExitLocator
from ..errors import BackendUnavailable
from ..exits import Access, Exit
from ..machine import Machine
from .output import fancy, note, out

if TYPE_CHECKING:
    from ..guests import Cheat

__all__ = ["command"]

#: One exit as it is compared: kind, address, size, value.
_Record = tuple[str, int, int, int]
_MEMORY = 1 << 20
_SEED = 2020
_CHAR_TO_CHAR = bytes.fromhex("a00010 a22010 f4")
_LETTER_TO_CHAR = bytes.fromhex("a01010 a22010 f4")


@click.command("demo")
@click.option("--pause", is_flag=True, help="Wait for Enter after each step, for classrooms.")
def command(pause: bool) -> None:
    """What a VMM does, in seven steps, on KVM and on Unicorn, whichever this host has."""
    backends = _backends()
    steps: tuple[Callable[[list[Backend]], None], ...] = (_vm, _memory, _vcpu, _run, _devices, _game, _cheat)
    for number, step in enumerate(steps, 1):
        step(backends)
        if pause and number < len(steps):
            _wait()
    out("")
    _text(
        """\
        Go on: `vmmsim run guess` to play it yourself, `vmmsim exits guess` to see each of its
        exits, `vmmsim guests` for more guests, `vmmsim doctor` for what this host can run."""
    )


def _backends() -> list[Backend]:
    found, missing = [], []
    for name in REGISTRY:
        state = availability(name)
        if state.usable:
            found.append(open_backend(name)[0])
        else:
            missing.append(f"{name} ({state.reason})")
    if not found:
        raise BackendUnavailable("auto", "; ".join(missing), hint="see: vmmsim doctor")
    names = " and ".join(backend.provenance for backend in found)
    out(f"CPUs here: {names}" + (f". Not here: {', '.join(missing)}" if missing else ""))
    return found


def _wait() -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        return
    note("\n-- Enter --")
    with contextlib.suppress(EOFError):
        input()


def _title(number: int, text: str) -> None:
    line = f"{number}. {text}"
    out("")
    out(click.style(line, bold=True) if fancy() else line)
    out("-" * len(line))


def _text(text: str) -> None:
    out(textwrap.fill(" ".join(text.split()), 80))


def _show(text: str) -> None:
    """What the machine says: indented."""
    out(textwrap.indent(text, "    "))


@contextlib.contextmanager
def _machine(backend: Backend, **arguments: Any) -> Iterator[Machine]:
    with Machine(backend=backend, memory=_MEMORY, seed=_SEED, **arguments) as machine:
        yield machine


def _load(machine: Machine, code: bytes) -> None:
    from ..loaders import load_bytes

    machine.load(load_bytes(code, name="demo", load_address=layout.DEFAULT_LOAD, mode="real"))


def _listing(machine: Machine, size: int) -> str:
    state = machine.vcpu.state()
    reader = CodeReader(machine.memory)
    insns = reader.decode(state, state.linear_rip, size=size, count=0)
    if not insns:
        return reader.read(state, state.linear_rip, size).hex(" ")
    return "\n".join(f"{i.address:#06x}  {i.code.hex(' '):<12}  {i.text}" for i in insns)


def _vm(backends: list[Backend]) -> None:
    _title(1, "A virtual machine with nothing in it")
    _text(
        """\
        A VMM (QEMU, Firecracker, this program) asks a CPU to run foreign code and answers what
        the code asks for. With KVM it is the CPU of the host: open /dev/kvm, ask for a VM
        (KVM_CREATE_VM), and get a file descriptor for an empty machine. With Unicorn the CPU is
        a program. The VMM is the same for both; that is what this demo shows."""
    )
    for backend in backends:
        vm = backend.create_vm()
        vm.close()
        _show(f"{backend.provenance}: a VM made, and closed again")
    if any(backend.provenance == "kvm/pvm" for backend in backends):
        _text(
            """\
            (This host's KVM is kvm_pvm: it runs 64-bit user code on the CPU, and all other code,
            like that of this demo, in an emulator in the kernel. The exits are the same.)"""
        )


def _memory(backends: list[Backend]) -> None:
    _title(2, "Memory")
    _text(
        """\
        The guest's memory is a piece of ours: we map some pages and tell the CPU at which
        guest-physical address they appear (KVM_SET_USER_MEMORY_REGION). No copy: what we write
        there, the guest reads. We leave a hole at 0x1000, with no pages behind it. Step 5 needs it."""
    )
    with _machine(backends[0]) as machine:
        machine.load_guest("loop")
        for region in machine.memory.regions:
            _show(f"{region.gpa:#07x}..{region.end - 1:#07x}  RAM, {region.size >> 10} KiB")
        _text("The program is seven bytes, written to address 0:")
        _show(machine.memory.read(0, 7).hex(" "))


def _vcpu(backends: list[Backend]) -> None:
    _title(3, "A vCPU and its registers")
    _text(
        """\
        A vCPU (KVM_CREATE_VCPU) is a set of registers. We put it into real mode, where the PC
        of 1981 began, with RIP at the program (KVM_SET_SREGS, KVM_SET_REGS). Decoded there, the
        seven bytes are:"""
    )
    with _machine(backends[0]) as machine:
        machine.load_guest("loop")
        _show(_listing(machine, 7))
        state = machine.vcpu.state()
        _show(f"rip={state.rip:#x} rax={state.rax:#x} mode={state.mode} cs.base={state.cs.base:#x}")


def _run(backends: list[Backend]) -> None:
    _title(4, "Run")
    _text(
        """\
        KVM_RUN gives the host's CPU to the guest. It comes back when the guest does something
        that the CPU cannot finish alone: that is an exit. This guest counts from 2020 to 0,
        some 4000 instructions, and nobody has to help. Then it halts, and that is its only exit:"""
    )
    for backend in backends:
        with _machine(backend) as machine:
            machine.load_guest("loop")
            exit = machine.run()
            registers = machine.vcpu.registers()
            _show(f"{backend.provenance}: {exit.kind} ({exit.kvm}), rax={registers.rax}, rip={registers.rip}")


def _devices(backends: list[Backend]) -> None:
    _title(5, "Devices are answers to exits")
    _text(
        """\
        Where there is no memory, a load or a store is an exit (KVM_EXIT_MMIO) with an address
        and a size. If the VMM answers it, a device is there. At 0x1000 ours answers the next
        character that is typed; at 0x1020 it prints what is stored. Say somebody types k:"""
    )
    _both(backends, _CHAR_TO_CHAR, b"k")
    _text(
        """\
        The first exit waited: RIP was still at the load until the VMM had answered. The store
        had been made: RIP was behind it. Another device, at 0x1010, answers a random letter:"""
    )
    _both(backends, _LETTER_TO_CHAR, b"")


def _both(backends: list[Backend], code: bytes, typed: bytes) -> None:
    """Run `code` exit by exit on each CPU; show the first's exits and whether all are the same."""
    from ..streams import BytesSource

    seen: list[list[str]] = []
    for backend in backends:
        with _machine(backend, source=BytesSource(typed)) as machine:
            _load(machine, code)
            if not seen:
                _show(_listing(machine, len(code)))
            seen.append(_step_all(machine))
            printed = machine.output.data
    _show("\n".join(f"exit {number}: {line}" for number, line in enumerate(seen[0], 1)))
    _show(f"printed: {printed.decode('ascii')}")
    if len(seen) > 1:
        same = all(lines == seen[0] for lines in seen)
        verdict = "the same exits" if same else "NOT the same exits"
        _show(f"{' and '.join(b.provenance for b in backends)}: {verdict}")


def _step_all(machine: Machine) -> list[str]:
    locator = ExitLocator(machine.memory)
    locator.learn(machine.vcpu.state().linear_rip)
    lines = []
    while True:
        exit = machine.step_exit()
        state = machine.vcpu.state()
        if not isinstance(exit, Access):
            lines.append(f"{exit.kvm}, rip {state.rip:#x}")
            return lines
        insn = locator.instruction(state, exit)
        machine.answer(exit)
        verb = "write" if exit.is_write else "read"
        line = (
            f"{exit.kvm}, {verb} {exit.size} at {exit.address:#x} = {exit.value_text()}, rip {state.rip:#x}"
        )
        lines.append(line + (f"  {insn.text.replace('byte ptr ', '')}" if insn else ""))


class _Player:
    """A CharSource that plays: it reads the guest's words and halves what is left."""

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self._read = 0
        self._low, self._high, self._guess = ord("a"), ord("z"), 0
        self.ended = False

    def get(self) -> int | None:
        assert self.machine is not None
        words = self.machine.output.since(self._read)
        self._read = len(self.machine.output)
        if b"You won" in words or b"You lost" in words:
            return ord(".")
        if b"too low" in words:
            self._low = self._guess + 1
        elif b"too high" in words:
            self._high = self._guess - 1
        self._guess = (self._low + self._high) // 2
        return self._guess

    wait = get

    def ready(self) -> bool:
        return True


def _game(backends: list[Backend]) -> None:
    _title(6, "A game, and what the CPUs agree on")
    _text(
        """\
        With those three devices a guest can play: it takes a random letter and says whether
        your guess is too high or too low. Here a script plays, which halves what is left:"""
    )
    first, *others = [_play(backend) for backend in backends]
    _show(first.screen.strip())
    counts = {kind: sum(r[0] == kind for r in first.trace) for kind in ("mmio_read", "mmio_write")}
    _text(
        f"Every character is an exit: {counts['mmio_read']} reads and {counts['mmio_write']} writes, "
        f"{len(first.trace)} exits, then {first.end.kind}."
    )
    for other in others:
        _show(_agreement(first, other))
    if not others:
        _show(f"only {first.provenance} is here, so there is nothing to compare it with")


class _Played(msgspec.Struct):
    """A game: on which CPU, how it ended, what was printed, each exit, the registers after it."""

    provenance: str
    end: Exit
    screen: str
    trace: list[_Record]
    registers: Registers


def _play(backend: Backend) -> _Played:
    player = _Player()
    with _machine(backend, source=player) as machine:
        player.machine = machine
        trace: list[_Record] = []
        machine.observe(lambda cls, address, size, value: trace.append((cls.kind, address, size, value)))
        machine.load_guest("guess")
        end = machine.run()
        screen = machine.output.data.decode("ascii")
        return _Played(backend.provenance, end, screen, trace, machine.vcpu.registers())


def _agreement(one: _Played, two: _Played) -> str:
    names = f"{one.provenance} and {two.provenance}"
    for number, (mine, theirs) in enumerate(zip(one.trace, two.trace, strict=False), 1):
        if mine != theirs:
            return f"{names} differ at exit {number}: {mine} and {theirs}"
    if len(one.trace) != len(two.trace) or type(one.end) is not type(two.end):
        return f"{names} differ: {len(one.trace)} and {len(two.trace)} exits"
    apart = [
        name
        for name in one.registers.__struct_fields__
        if getattr(one.registers, name) != getattr(two.registers, name)
    ]
    rest = "and on every register at the end" if not apart else f"but not on {', '.join(apart)} at the end"
    return f"{names} agree\non all {len(one.trace)} exits (kind, address, size, value), {rest}"


class _Reciter:
    """A CharSource that says the alphabet, and the full stop once it has won `wanted` games."""

    def __init__(self, wanted: int) -> None:
        self.machine: Machine | None = None
        self._wanted = wanted
        self._said = 0
        self.ended = False

    def get(self) -> int | None:
        assert self.machine is not None
        if self.machine.output.data.count(b"You won") >= self._wanted or self._said > 26 * self._wanted:
            return ord(".")
        self._said += 1
        return ord("a") + (self._said - 1) % 26

    wait = get

    def ready(self) -> bool:
        return True


def _cheat(backends: list[Backend]) -> None:
    from ..guests import load

    cheat = load("guess").manifest.cheat
    assert cheat is not None
    _title(7, "Time travel: a game that cannot be lost")
    _text(
        """\
        A VMM holds all that a machine is: the registers, the memory, the devices. Kept as a value
        that is a snapshot, and putting it back is travel in time. This player only says the
        alphabet, until it has won three games. First by the rules:"""
    )
    plain = [_recite(backend, None) for backend in backends]
    _show(plain[0].score)
    _text(
        """\
        Now the VMM takes a snapshot before each letter, and when the guest says "You lost", it goes
        back to it. The guest does not know; the player does, and what was typed is not typed again:"""
    )
    cheated = [_recite(backend, cheat) for backend in backends]
    _show(f"{cheated[0].score}\n({cheated[0].times} times back in time)")
    for backend, other in zip(backends[1:], cheated[1:], strict=True):
        verdict = "the same" if other == cheated[0] else f"NOT the same: {other.score}"
        _show(f"on {backend.provenance}: {verdict}")


class _Recited(msgspec.Struct):
    """The last score that the guest printed, all that it printed, and how often time went back."""

    score: str
    screen: bytes
    times: int


def _recite(backend: Backend, cheat: Cheat | None) -> _Recited:
    from ..snapshot.cheat import TimeMachine

    player = _Reciter(3)
    with _machine(backend, source=player) as machine:
        player.machine = machine
        machine.load_guest("guess")
        travel = TimeMachine(machine, begin=cheat.begin, lost=cheat.lost) if cheat is not None else None
        machine.run()
        screen = machine.output.data
        score = screen.decode("ascii").strip().splitlines()[-1]
        return _Recited(score, screen, travel.times if travel is not None else 0)
