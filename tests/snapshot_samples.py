"""Snapshots for tests: a PC that differs from a fresh one in every part of its state.

Run as a script it writes the golden files of the format's version: once a version, never again.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import msgspec

from vmmsim import models
from vmmsim.clock import ExitClock
from vmmsim.config import MachineConfig
from vmmsim.cpu.modes import MODES, setup
from vmmsim.cpu.state import CpuState, Events, Segment
from vmmsim.devices.post_code import PostCodeState
from vmmsim.devices.ps2_keyboard import Ps2KeyboardState
from vmmsim.devices.scratch import ScratchState
from vmmsim.devices.uart16550 import UartState
from vmmsim.snapshot.encode import state_types
from vmmsim.snapshot.pages import MemoryImage, MemoryRegion
from vmmsim.snapshot.values import ClockState, CpuSnapshot, Provenance, RandomState, Snapshot
from vmmsim.streams import BufferSink, BytesSource
from vmmsim.wiring import Wiring

GOLDEN = Path(__file__).parent / "golden"
PAGE = 4096
RAM = MemoryRegion(0, 0xA0000, False, "ram")
ROM = MemoryRegion(0xF0000, 0x10000, True, "bios")
CONFIG = MachineConfig(
    memory=1 << 20,
    model="pc",
    extra_devices=("char-in", "char-out", "random-letter", "scratch"),
    clock="exits",
)


def pattern(seed: int) -> bytes:
    """A page that no other seed has, and that needs no generator of random numbers to be made again."""
    return bytes((seed + at * 7 + (at >> 8) * 31) & 0xFF for at in range(PAGE))


def fresh_states(config: MachineConfig = CONFIG) -> dict[str, Any]:
    """What every device of a new machine keeps."""
    devices: dict[str, Any] = {}
    wiring = Wiring(
        BytesSource(b""), ExitClock(), devices, BufferSink(), random.Random(1),
        lambda code: None, lambda event: None, config,
    )  # fmt: skip
    for name in models.names(config):
        devices[name] = models.DEVICES[name].make(wiring)
    states = {}
    for name in state_types(config):
        device, _, part = name.partition(".")
        states[name] = (getattr(devices[device], part) if part else devices[device]).state()
    return states


def cpu_state() -> CpuState:
    """Real mode, at the code of the first page, with something in every kind of register."""
    state = CpuState()
    state.rax, state.rbx, state.r15 = 0x1122334455667788, 0xFFFFFFFFFFFFFFFF, 1 << 53
    state.rip, state.rflags = 0x7C05, 0x202
    state.cs = Segment(0, 0, 0xFFFF, 0x9B)
    state.fpu.st[7] = 0x3FFF8000000000000001
    state.fpu.xmm[15] = (1 << 128) - 1
    state.fpu.ymmh[0] = 0x0123456789ABCDEF0123456789ABCDEF
    state.msrs[0xC0000102] = 0x7FFF_FFFF_F000
    state.dr[3] = 0xDEADBEEF
    state.events = Events(sti_shadow=True, nmi_masked=True, interrupt=0x20)
    return state


def sample() -> Snapshot:
    """The snapshot of the golden file."""
    states = fresh_states()
    states["uart"] = UartState(ier=5, rx=(0x68, 0x69), divisor=1)
    states["kbc.keyboard"] = Ps2KeyboardState(leds=2, buffer=(0x1C, 0xF0, 0x1C))
    states["post-code"] = PostCodeState((0x80, 0x55))
    states["scratch"] = ScratchState(bytes(range(256)) * (len(states["scratch"].data) // 256))
    code = bytes.fromhex("b0 41 e6 e9 90 f4")  # mov al, 'A'; out 0xe9, al; nop; hlt
    boot = bytearray(PAGE)
    boot[0xC00 : 0xC00 + len(code)] = code
    pages = {0x7000: bytes(boot), 0x8000: pattern(1), 0x9000: pattern(2), 0x9F000: pattern(3)}
    pages |= {0xF0000: pattern(4), 0xFF000: pattern(5)}
    return Snapshot(
        config=CONFIG,
        cpus=(CpuSnapshot(state=cpu_state(), insns=1234567),),
        memory=MemoryImage.of_pages([RAM, ROM], pages),
        devices=states,
        clock=ClockState(kind="exits", now_ns=77_000, exits=77, step=1000),
        input_position=42,
        random_state=RandomState.of(random.Random(2026)),
        generation=3,
        provenance=Provenance(
            backend="kvm (kvm_intel)", version="0.1.0", host="Linux, a test", created=1790000000
        ),
    )


def child(parent: Snapshot) -> Snapshot:
    """A later moment of `parent`: a register, a device and three pages differ, one of them is zero now."""
    state = parent.cpus[0].state.copy()
    state.rip, state.rax = 0x7C06, 0x41
    state.events = Events()
    boot = bytearray(parent.memory.page(0x7000))
    boot[0xC05] = 0xCC
    pages = {0x7000: bytes(boot), 0x9000: bytes(PAGE), 0x50000: pattern(6)}
    return msgspec.structs.replace(
        parent,
        cpus=(CpuSnapshot(state=state, insns=1234568),),
        memory=MemoryImage.of_pages(parent.memory.regions, pages, parent=parent.memory),
        devices={**parent.devices, "uart": UartState(ier=5, rx=(0x69,), divisor=1)},
        clock=ClockState(kind="exits", now_ns=78_000, exits=78, step=1000),
    )


def states_of_all_modes() -> list[CpuState]:
    """The presets: a state of every mode that an x86-64 CPU has."""
    return [setup(mode, 0x8000).state for mode in MODES]


if __name__ == "__main__":
    from vmmsim.snapshot.container import load, save

    if (GOLDEN / "v1.vsnap").exists():
        sys.exit("golden files are made once")
    save(sample(), GOLDEN / "v1.vsnap")
    parent = load(GOLDEN / "v1.vsnap")
    save(child(parent), GOLDEN / "v1-child.vsnap", parent=parent)
