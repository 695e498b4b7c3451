"""vmmsim.testing.plugin and assert_same_behaviour, as a project of somebody else's sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import diff_seeds as seeds
import pytest

from vmmsim import UsageError
from vmmsim.exits import MmioRead, MmioWrite, MsrRead, PortRead, PortWrite
from vmmsim.testing import Side, assert_same_behaviour
from vmmsim.testing.script import script_image
from vmmsim.testing.slow import time_limit
from vmmsim.trace import read_trace

pytestmark = pytest.mark.unicorn

USES = """
from vmmsim.testing import assert_same_behaviour

def test_machine(machine):
    made = machine("echo", clock="exits")
    made.serial.send(b"a\\n")
    made.run()
    assert made.output.data == b"a\\n"

def test_backend(backend, backend_name):
    assert backend.name == backend_name

def test_both(both_backends):
    assert both_backends == ("kvm", "unicorn")

def test_same():
    assert_same_behaviour("loop", "kvm", "unicorn")

def test_fails(machine):
    made = machine(bytes.fromhex("e610 f4"))
    made.run()
    assert made.counts() == {}
"""

PLAIN = """
import sys
import pytest

@pytest.fixture
def machine():
    return 3

@pytest.fixture(params=["x"])
def backend_name(request):
    return request.param

@pytest.fixture
def both_backends():
    return 4

def test_own_fixtures(machine, backend_name, both_backends):
    assert (machine, backend_name, both_backends) == (3, "x", 4)

@pytest.mark.kvm
def test_own_marker():
    loaded = {name for name in sys.modules if name.startswith("vmmsim.")}
    assert loaded == {"vmmsim.testing", "vmmsim.testing.plugin"}
    assert not {"unicorn", "ctypes.util", "capstone"} & set(sys.modules)
"""


def run(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a project of its own, on a host without KVM."""
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = kvm: theirs\n", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VMMSIM_", "PYTEST"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "vmmsim.testing.plugin", *arguments],
        cwd=folder,
        env={**kept, "VMMSIM_KVM_DEVICE": "/no/such/kvm"},
        capture_output=True,
        text=True,
        timeout=time_limit(60),
        check=False,
    )


def test_a_project_without_kvm(tmp_path: Path) -> None:
    done = run(tmp_path, USES, "--vmm-artifacts", "kept")
    assert "1 failed, 2 passed, 5 skipped" in done.stdout, done.stdout
    assert "ran on kvm: 0, on unicorn: 3; skipped on kvm: 4, on unicorn: 1" in done.stdout
    assert "backend 'kvm': " in done.stdout
    folder = tmp_path / "kept" / "test_it.py-test_fails-unicorn-"
    assert f"{Path('kept') / folder.name / 'machine1.jsonl'}" in done.stdout
    trace = read_trace(folder / "machine1.jsonl")
    assert [(exit.kind, exit.address) for exit in trace.exits] == [("port_write", 0x10)]
    assert trace.end is not None
    assert trace.end.kind == "halt"
    assert [path.name for path in folder.iterdir() if path.suffix == ".vsnap"] == ["machine1.vsnap"]


def test_one_backend_is_chosen_and_one_required(tmp_path: Path) -> None:
    done = run(tmp_path, USES, "--vmm-backend=unicorn", "--vmm-require=kvm", "-k", "not fails")
    assert "1 failed, 2 passed, 1 deselected, 1 error" in done.stdout, done.stdout
    assert done.stdout.count("backend 'kvm' is required here, but") == 2


def test_a_project_that_has_nothing_to_do_with_vmmsim(tmp_path: Path) -> None:
    done = run(tmp_path, PLAIN, "--strict-markers", "-W", "error", "--vmm-require=kvm")
    assert "2 passed" in done.stdout, done.stdout
    assert "ran on" not in done.stdout


# -- assert_same_behaviour


def test_the_message_is_the_report_and_names_what_was_kept(tmp_path: Path) -> None:
    script = [PortWrite(0x3F8, 1, 0x41), PortRead(0x3FD, 1)]
    mine = Side(devices={"uart": seeds.BusyUart})
    with pytest.raises(AssertionError) as caught:
        assert_same_behaviour(script, mine, "unicorn")
    text = str(caught.value)
    assert "a #2: port_read 0x3fd size 1 = 0x20" in text
    assert "b #2: port_read 0x3fd size 1 = 0x60" in text
    assert "python -m pytest 'tests/test_plugin.py::test_the_message" in text
    assert len(list(tmp_path.glob("script-*.jsonl"))) == 2
    assert len(list(tmp_path.glob("script-*.vsnap"))) == 2
    assert [exit.value for exit in read_trace(tmp_path / "script-a-unicorn.jsonl").exits] == [0x41, 0x20]


def test_the_same_is_silent() -> None:
    assert_same_behaviour("guess", "unicorn", "unicorn-portable", input=b"m\nq\n")
    assert_same_behaviour(bytes.fromhex("b041e6e9f4"), "unicorn", "unicorn-portable")


@pytest.mark.kvm
def test_a_script_is_the_same_on_both(both_backends: tuple[str, str]) -> None:
    script = [
        *(PortWrite(0x500, size, 0x41) for size in (1, 2, 4)),
        *(PortRead(0x500, size) for size in (1, 2, 4)),
        *(MmioWrite(0x1005, size, 0x42) for size in (1, 2, 4)),
        *(MmioRead(0x1005, size) for size in (1, 2, 4)),
    ]
    assert_same_behaviour(script, *both_backends)


def test_a_script_makes_its_accesses_as_they_are(machine: object) -> None:
    made = machine()  # type: ignore[operator]
    writes = PortWrite(0x600, 4, 0x12345678), MmioWrite(0x1800, 2, 0xABCD)
    script = [writes[0], PortRead(0x600, 2), writes[1], MmioRead(0x1801, 1)]
    seen: list[tuple[type, int, int, int]] = []
    made.observe(lambda *access: seen.append(access))
    made.load(script_image(script))
    assert made.run().kind == "halt"
    assert [(cls, at, size) for cls, at, size, _ in seen] == [(type(s), s.address, s.size) for s in script]
    assert [value for cls, _, _, value in seen if cls.is_write] == [0x12345678, 0xABCD]


@pytest.mark.parametrize(
    "access",
    [
        PortRead(0x10000, 1),
        MmioRead(0x1000, 8),
        MmioWrite(1 << 32, 1, 0),
        MsrRead(0x1B, 8),
        "out",
        PortWrite(1, 1, 256),
    ],
)
def test_a_step_that_is_no_access_is_refused(access: object) -> None:
    with pytest.raises(UsageError, match="step 1 of the script"):
        script_image([PortRead(0x60, 1), access])  # type: ignore[list-item]
