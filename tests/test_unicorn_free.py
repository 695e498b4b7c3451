"""The native engine runs free where the guest makes no accesses; nobody but the clock can tell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("unicorn")

from vmmsim.backends.unicorn_native.vcpu import native_usable
from vmmsim.budget import insns, seconds
from vmmsim.cpu.modes import setup
from vmmsim.exits import BudgetSpent, Halt
from vmmsim.machine import Machine

pytestmark = [
    pytest.mark.unicorn,
    pytest.mark.skipif(not native_usable()[0], reason=f"no native engine: {native_usable()[1]}"),
]


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", "native")


def _machine(code: str) -> Machine:
    machine = Machine(backend="unicorn", memory=1 << 20, extra_devices=("scratch",))
    machine.memory.write(0x4000, bytes.fromhex(code))
    machine.vcpu.set_state(setup("real", 0x4000, 1 << 20).state)
    return machine


def test_phases_change_and_the_guest_sees_nothing(native: None) -> None:
    # mov bx, 3; outer: mov ecx, 3000000; l: inc dword [0x8000]; dec ecx; jnz l; out 0x80, al;
    # dec bx; jnz outer; hlt
    with _machine("bb0300 66b9c0c62d00 66ff060080 6649 75f7 e680 4b 75ec f4") as machine:
        watched = set()
        machine.observe(lambda *access: watched.add(machine.vcpu._watched))  # type: ignore[attr-defined]
        assert not machine.vcpu._watched  # type: ignore[attr-defined]

        exit = machine.run(budget=seconds(60))

        assert exit == Halt()
        assert watched == {True}, "an access is only made in watched code"
        assert machine.accesses.total == 3
        assert machine.memory.read_int(0x8000, 4) == 3 * 3000000


def test_a_halt_in_free_code_is_a_halt(native: None) -> None:
    with _machine("4040f440f4") as machine:  # inc ax; inc ax; hlt; inc ax; hlt
        assert machine.run() == Halt()
        assert machine.cpu.rip == 0x4003
        assert machine.run() == Halt()
        assert (machine.cpu.rip, machine.cpu.rax) == (0x4005, 3)


def test_a_load_that_leaves_ram_in_free_code_has_its_true_size(native: None) -> None:
    # mov eax, [0xcfffe]: two bytes of RAM, then two of the scratch device
    with _machine("6766a1feff0c00 f4") as machine:
        machine.memory.write(0xCFFFE, b"\x11\x22")
        machine.devices["scratch"].write(0, 2, 0x4433)
        seen = []
        machine.observe(lambda cls, address, size, value: seen.append((cls.kind, address, size)))

        assert machine.run(budget=seconds(10)) == Halt()

        assert seen == [("mmio_read", 0xD0000, 2)]
        assert machine.cpu.rax == 0x44332211


def test_counting_is_exact_after_a_free_run(native: None) -> None:
    with _machine("4040ebfc") as machine:  # l: inc ax; inc ax; jmp l
        assert isinstance(machine.run(budget=seconds(0.02)), BudgetSpent)
        machine.cpu.rip, machine.cpu.rax = 0x4000, 0

        assert machine.run(budget=insns(3000)) == BudgetSpent("insns", 3000)

        assert machine.cpu.rax == 2000


_DENIED = """
import mmap

class Denied(mmap.mmap):
    def __new__(cls, *args, **fields):
        if fields.get("prot", 0) & mmap.PROT_EXEC:
            raise PermissionError(13, "no executable memory here")
        return super().__new__(cls, *args, **fields)

mmap.mmap = Denied
from vmmsim import Machine

with Machine.for_guest("lwn", backend="unicorn") as machine:
    print(machine.run(), machine.output.data, machine.backend.engine, machine.backend.engine_reason)
"""


def test_a_host_without_executable_memory_gets_the_portable_engine() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VMMSIM_UNICORN"}
    command = [sys.executable, "-c", _DENIED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment)

    assert done.stdout.startswith("Halt() b'4\\n' portable "), done.stdout + done.stderr
    assert "no executable memory" in done.stdout
