"""One verdict on a run, however it was started: a guest that panics like Linux never ends with code 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import vmmsim
from test_migration_cli import Receiver

from vmmsim import GuestError, Machine
from vmmsim.exits import SystemEvent
from vmmsim.loaders import load_flat

pytestmark = pytest.mark.unicorn

TEXT = "Kernel panic - not syncing: a test"
#: Real mode, at 0x7c00. Prints "ready\n", waits for a key, panics on COM1 and resets by the 8042 (pulse FEh).
CODE = bytes.fromhex(
    "be2c7c"  # mov si, ready
    "e81300"  # call print
    "bafd03"  # wait: mov dx, 0x3fd
    "ec"  # in al, dx
    "a801"  # test al, 1
    "74f8"  # jz wait
    "be337c"  # mov si, panic
    "e80500"  # call print
    "b0fe"  # mov al, 0xfe
    "e664"  # out 0x64, al
    "f4"  # hlt
    "baf803"  # print: mov dx, 0x3f8
    "ac"  # lodsb
    "84c0"  # test al, al
    "7403"  # jz end
    "ee"  # out dx, al
    "ebf8"  # jmp print + 3
    "c3"  # end: ret
    "90909090909090"
)
CODE += b"ready\n\0" + b"[    1.5] " + TEXT.encode() + b"\r\n\0"
RUN = ("-b", "unicorn", "-q", "--timeout", "20")


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    path = tmp_path / "panics.bin"
    path.write_bytes(CODE)
    return path


@pytest.fixture
def snapshot(tmp_path: Path, guest: Path) -> Path:
    path = tmp_path / "ready.vsnap"
    made = vmmsim(
        "run", guest, *RUN, "-M", "pc", "--clock", "exits",
        "--snapshot-on", "serial:ready", "--then", "stop", "-o", path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return path


def panicked(done: subprocess.CompletedProcess[bytes]) -> bool:
    return done.returncode == 121 and f"the kernel panicked: {TEXT}" in done.stderr.decode()


def test_run_of_the_image(guest: Path) -> None:
    assert panicked(vmmsim("run", guest, *RUN, "-M", "pc", stdin=b"k"))


@pytest.mark.parametrize("verb", ["run", "exits", "trace"])
def test_a_snapshot_that_goes_on(verb: str, snapshot: Path, tmp_path: Path) -> None:
    more = ("-o", tmp_path / "trace.jsonl") if verb == "trace" else ()
    done = vmmsim(verb, snapshot, *RUN, *more, stdin=b"k")
    assert done.returncode == 121
    assert TEXT in done.stderr.decode()


def test_clones(snapshot: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k")
    done = vmmsim("clone", snapshot, "-n", "2", "-b", "unicorn", "--stdin", key)
    assert done.returncode == 121
    assert TEXT in done.stdout.decode()


def test_what_was_received(snapshot: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k")
    with Receiver(f"unix:{tmp_path / 'socket'}", "--stdin", key) as receiver:
        vmmsim("migrate", snapshot, "-b", "unicorn", "-q", "--to", receiver.url, "--stop", "--stdin", "none")
        code, _, said = receiver.end()
    assert code == 121
    assert TEXT in said.decode()


def test_a_replay(guest: Path, tmp_path: Path) -> None:
    made = vmmsim(
        "run", guest, *RUN, "-M", "pc", "--clock", "exits", "--record", tmp_path / "it.rec", stdin=b"k"
    )
    assert made.returncode == 121
    assert panicked(vmmsim("replay", tmp_path / "it.rec"))


def test_the_api() -> None:
    with Machine(model="pc", backend="unicorn", memory=1 << 20, clock="exits") as machine:
        machine.load(load_flat(CODE, name="panics"))
        machine.serial.send(b"k")
        end = machine.run()
        assert isinstance(end, SystemEvent)
        verdict = machine.outcome()
    assert (verdict.code, verdict.panicked, verdict.abnormal) == (121, TEXT, True)


def test_expect_says_that_the_kernel_panicked() -> None:
    with Machine(model="pc", backend="unicorn", memory=1 << 20, clock="exits") as machine:
        machine.load(load_flat(CODE, name="panics"))
        machine.serial.send(b"k")
        with pytest.raises(GuestError, match=f"the machine ended first: {TEXT}"):
            machine.serial.expect(b"login: ")


TESTS = f"""
CODE = bytes.fromhex("{CODE.hex()}")

def panics(machine, **options):
    made = machine(CODE, model="pc", memory=1 << 20, clock="exits", **options)
    made.serial.send(b"k")
    made.run()

def test_unseen(machine):
    panics(machine)

def test_wanted(machine):
    panics(machine, may_panic=True)
"""


def test_the_plugin_fails_a_test_whose_kernel_panicked(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-rA", "-p", "vmmsim.testing.plugin",
            "--vmm-backend", "unicorn", tmp_path,
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert "1 failed, 1 passed" in done.stdout
    assert f"the kernel panicked: {TEXT}" in done.stdout
    assert "FAILED test_it.py::test_unseen" in done.stdout
    assert "machine1.vsnap" in done.stdout  # what is kept of a failed test
