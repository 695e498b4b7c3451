"""`vmmsim diff` on the command line: what it prints, exit codes, files, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_tools import SPIN, no_kvm, start, vmmsim
from click.testing import CliRunner, Result

from vmmsim.cli.main import cli
from vmmsim.testing.slow import time_limit

pytestmark = pytest.mark.unicorn

BUSY = "serial=diff_seeds:BusyUart"
UNICORNS = ("--a", "unicorn", "--b", "unicorn")


def diff(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["diff", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console script's own path has no tests in it, but its current directory."""
    monkeypatch.chdir(Path(__file__).parent)


def test_the_same_is_0_and_a_difference_122() -> None:
    assert diff("echo", "--a", "unicorn", "--b", "unicorn-portable").exit_code == 0
    found = vmmsim("diff", "serial-echo", *UNICORNS, "--b-device", BUSY)
    assert found.returncode == 122
    text = found.stdout.decode()
    assert text.startswith(f"unicorn and unicorn ({BUSY}) differ at exit 9 of serial-echo\n")
    again = text.splitlines()[-1].strip()
    assert again == f"vmmsim diff serial-echo --a unicorn --b unicorn --b-device {BUSY} --step"


@pytest.mark.kvm
def test_kvm_and_unicorn_are_the_two_sides_unless_told() -> None:
    found = diff("guess")
    assert found.exit_code == 0
    assert found.output.startswith("kvm and unicorn are the same: 932 exits, halt")


def test_json_and_a_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    found = diff("serial-echo", *UNICORNS, "--b-device", BUSY, "--step", "--json", "--html", page)
    assert found.exit_code == 122
    read = json.loads(found.stdout)
    assert (read["exit"], read["exits"], read["step"]["address"]) == (9, 8, 0x7C56)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<script" not in text
    assert "http" not in text


def test_input_from_a_file_reaches_both(tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_bytes(b"abc\n")
    found = diff("echo", "--a", "unicorn", "--b", "unicorn-portable", "--stdin", typed)
    assert "8 exits" in found.output


def test_a_snapshot(tmp_path: Path) -> None:
    from vmmsim import Machine, guests
    from vmmsim.budget import exits
    from vmmsim.snapshot.container import save
    from vmmsim.streams import BytesSource

    typed = guests.load("echo").input
    with Machine.for_guest("echo", backend="unicorn", source=BytesSource(typed)) as machine:
        machine.run(budget=exits(10))
        save(machine.snapshot(), tmp_path / "echo.vsnap")
    (tmp_path / "typed").write_bytes(typed)
    file = tmp_path / "echo.vsnap"
    found = diff(file, "--a", "unicorn", "--b", "unicorn-portable", "--stdin", tmp_path / "typed")
    assert found.exit_code == 0, found.output
    assert "16 exits" in found.output
    found = diff(file, *UNICORNS, "--memory", "1M")
    assert found.exit_code == 125
    assert "--memory with a snapshot" in found.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 125, "nothing to run"),
        (("no-such-guest",), 127, "no-such-guest"),
        (("echo", "--b", "qemu"), 125, "there is no backend 'qemu'"),
        (("echo", *UNICORNS, "--b-device", "serial"), 125, "--b-device serial"),
        (("echo", *UNICORNS, "--b-device", "serial=nowhere:X"), 125, "No module named 'nowhere'"),
        (("echo", *UNICORNS, "--a-device", "serial=diff_seeds:Unmade"), 125, "ValueError: no chip"),
        (("echo", *UNICORNS, "--a-set", "memory"), 125, "--a-set memory"),
        (("echo", *UNICORNS, "--a-set", "memory=12q"), 125, "12q"),
        (("echo", *UNICORNS, "--stdin", "/no/such/file"), 127, "/no/such/file"),
        (("serial-echo", *UNICORNS, "--b-device", BUSY, "--html", "/no/such/place/x.html"), 125, "x.html"),
    ],
)
def test_bad_input_is_a_line_with_a_hint(arguments: tuple[str, ...], code: int, message: str) -> None:
    found = diff(*arguments)
    assert found.exit_code == code, found.output
    assert message in found.output
    assert "Traceback" not in found.output


def test_without_kvm_it_says_how_to_get_it_and_what_else_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_KVM_DEVICE", "/no/such/kvm")
    found = diff("echo")
    assert found.exit_code == 126
    assert no_kvm("/no/such/kvm") in found.output
    assert "--only-available" in found.output
    found = diff("echo", "--only-available")
    assert found.exit_code == 0
    assert "kvm is missing" in found.output


def test_time_that_is_over_is_124(tmp_path: Path) -> None:
    (tmp_path / "spin.bin").write_bytes(SPIN)
    found = diff(tmp_path / "spin.bin", *UNICORNS, "--timeout", "300ms")
    assert found.exit_code == 124
    found = diff("guess", *UNICORNS, "--max-exits", "100")
    assert found.exit_code == 0
    assert "limit of 100 exits" in found.output


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_says_how_far_it_came(tmp_path: Path) -> None:
    (tmp_path / "spin.bin").write_bytes(bytes.fromhex("e610ebfc"))  # out 0x10, al, for ever
    child = start("diff", tmp_path / "spin.bin", *UNICORNS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.5)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=time_limit(20))
    assert child.returncode == 130, errors
    assert b"exits were the same until there" in errors
