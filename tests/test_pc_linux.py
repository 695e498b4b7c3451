"""Linux, from the kernels that lie beside the checkout: to its user space and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmsim import Machine
from vmmsim.budget import seconds
from vmmsim.exits import Refused, SystemEvent
from vmmsim.loaders import load_kernel
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit

LINUX = Path(__file__).resolve().parents[2] / "shared" / "guests" / "linux"
MEMORY = 128 << 20
NO_INPUT = {"source": BytesSource(b"")}

pytestmark = [
    pytest.mark.skipif(not LINUX.is_dir(), reason="no kernels beside this checkout (shared/guests/linux)"),
    pytest.mark.timeout(110),
]


def linux(bits: int, initrd: str, append: str = "", backend: str = "unicorn", **arguments: object) -> Machine:
    image = load_kernel(
        (LINUX / f"bzImage-tiny{bits}-lz4").read_bytes(),
        name="linux",
        memory_size=MEMORY,
        initrd=(LINUX / initrd).read_bytes(),
        append=f"console=ttyS0 panic=-1 reboot=k {append}",
    )
    machine = Machine(backend=backend, model="pc", memory=MEMORY, **arguments)  # type: ignore[arg-type]
    machine.load(image)
    return machine


@pytest.mark.unicorn
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("bits", [64, 32])
def test_the_user_program_prints_and_reboots(engine: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    with linux(bits, f"initrd-hello{bits}.cpio", **NO_INPUT) as machine:
        assert machine.run(budget=seconds(time_limit(100))) == SystemEvent("reset")
        assert f"HELLO FROM USERSPACE {bits}".encode() in machine.output.data


@pytest.mark.unicorn
def test_a_shell_answers_on_the_serial_console() -> None:
    with linux(64, "initrd-busybox64.cpio.gz", "quiet interactive") as machine:
        console = machine.serial
        console.expect(b"BUSYBOX-INIT-OK", timeout=time_limit(60))
        console.expect(b"# ", timeout=time_limit(20))
        console.send(b"echo $((6*7)) | tr 2 3\n")
        console.expect(rb"\r\n43\r\n", timeout=time_limit(20))
        console.send(b"reboot -f\n")
        assert machine.run(budget=seconds(time_limit(20))) == SystemEvent("reset")


@pytest.mark.unicorn
def test_with_the_clock_of_exits_a_boot_repeats() -> None:
    # Linux calibrates a local APIC's timer by spinning until ticks come, without an exit.
    runs = []
    for _ in range(2):
        with linux(64, "initrd-hello64.cpio", "nolapic", clock="exits", **NO_INPUT) as machine:
            assert machine.run(budget=seconds(time_limit(100))) == SystemEvent("reset")
            runs.append((machine.output.data, machine.counts(), machine.clock.now()))
    assert runs[0] == runs[1]


@pytest.mark.kvm
def test_on_kvm_pvm_the_end_is_a_refusal_that_names_the_instruction() -> None:
    with linux(64, "initrd-hello64.cpio", "quiet", backend="kvm", **NO_INPUT) as machine:
        if machine.backend.provenance != "kvm/pvm":
            pytest.skip(f"this is {machine.backend.provenance}, which runs kernels")
        end = machine.run(budget=seconds(time_limit(100)))
        assert isinstance(end, Refused)
        assert "int3" in end.reason
