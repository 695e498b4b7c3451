"""The real gdb, in batch mode, with guests of `vmmsim run`."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import start
from debug_tools import elf_with_symbols

from vmmsim.testing.slow import time_limit

GDB = shutil.which("gdb")
BACKENDS = ("kvm", "unicorn")
pytestmark = [
    pytest.mark.skipif(GDB is None, reason="gdb is not installed: apt-get install gdb"),
    # Not with Unicorn's portable engine: gdb takes its time, and test_debug_stub.py has that.
    pytest.mark.parametrize(
        "backend_name", [pytest.param(b, marks=getattr(pytest.mark, b)) for b in BACKENDS]
    ),
]

#: In 64-bit code: start: xor eax, eax; again: inc rax; mov [0x9000], rax; cmp rax, 3; jne again;
#: done: out 0x10, al; mov al, 7; out 0xf4, al; hlt
CODE = bytes.fromhex("31c0 48ffc0 4889042500900000 4883f803 75ef e610 b007 e6f4 f4")
SYMBOLS = {"start": 0x8000, "again": 0x8002, "done": 0x8013}


class Debugged:
    """`vmmsim run` with a socket for gdb."""

    def __init__(self, where: Path, *arguments: str | Path) -> None:
        self.socket = where / "gdb"
        pipe = subprocess.PIPE
        self.process = start(
            "run", *arguments, "-q", "--gdb", f"unix:{self.socket}", stdin=subprocess.DEVNULL, stdout=pipe,
            stderr=pipe,
        )  # fmt: skip
        deadline = time.monotonic() + time_limit(20)
        while not self.socket.exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def gdb(self, *commands: str, file: Path | None = None) -> str:
        """What gdb prints for `commands`, behind the first stop."""
        assert GDB is not None
        words = [GDB, "-nx", "-batch", "-iex", "set confirm off", "-iex", "set pagination off"]
        for command in (f"target remote {self.socket}", *commands):
            words += ["-ex", command]
        if file is not None:
            words.append(str(file))
        ran = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=time_limit(30),
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return ran.stdout + ran.stderr

    def end(self) -> tuple[int, bytes]:
        """The exit code and what the guest printed."""
        out, _ = self.process.communicate(timeout=time_limit(20))
        return self.process.returncode, out


@pytest.fixture
def debug(tmp_path: Path, backend_name: str) -> Iterator[object]:
    running: list[Debugged] = []

    def run(*arguments: str | Path) -> Debugged:
        running.append(Debugged(tmp_path, *arguments, "-b", backend_name))
        return running[-1]

    yield run
    for item in running:
        if item.process.poll() is None:
            item.process.send_signal(signal.SIGKILL)
        item.process.communicate()


def elf(tmp_path: Path) -> Path:
    path = tmp_path / "guest.elf"
    path.write_bytes(elf_with_symbols(CODE, 0x8000, SYMBOLS))
    return path


def values(text: str) -> list[str]:
    """What `print` has printed."""
    return re.findall(r"^\$\d+ = (.*)$", text, re.MULTILINE)


def test_from_real_mode_to_long_mode(debug) -> None:
    guest = debug("hello64", "-S")
    text = guest.gdb(
        "p $cr0 & 1", "stepi", "p/x (long)$pc", "x/1xb 0x7c00",
        "break *0x7c1c", "break *0x7c8c", "continue", "p $cr0 & 1", "p $efer >> 10 & 1", "info registers rax",
        "continue", "p $efer >> 10 & 1", "p/x (long)$pc", "stepi", "x/1i $pc", "info all-registers",
        "continue",
    )  # fmt: skip
    assert values(text) == ["0", "0x7c01", "1", "0", "1", "0x7c8c"]
    assert re.search(r"^0x7c00:\s+0xfa$", text, re.MULTILINE)
    assert text.count("Breakpoint 1, ") == text.count("Breakpoint 2, ") == 1
    assert "Program received signal SIGTERM" in text
    assert "the guest ended with code 0" in text
    for trouble in ("warning: Remote", "packet reply is too long", "Truncated", "internal-error", "E."):
        assert trouble not in text
    assert guest.end() == (0, b"Hello from long mode\n")


def test_the_symbols_of_an_elf_guest(debug, tmp_path: Path) -> None:
    file = elf(tmp_path)
    guest = debug(file, "--mode", "l64", "-S")
    text = guest.gdb(
        "hbreak again", "break done", "continue", "p $rax", "continue", "p $rax", "info symbol $pc",
        "delete 1", "continue", "p *(long *)0x9000", "info symbol $pc", "set var *(int *)0x9004 = 5",
        "p *(long *)0x9000", "continue", "continue",
        file=file,
    )  # fmt: skip
    assert values(text) == ["0", "1", "3", "21474836483"]
    assert "again in section" in text
    assert "done in section" in text
    assert "[Inferior 1 (Remote target) exited with code 07]" in text
    assert guest.end()[0] == 7


def test_a_watchpoint(debug, tmp_path: Path) -> None:
    guest = debug(elf(tmp_path), "--mode", "l64", "-S")
    text = guest.gdb("watch *(long *)0x9000", "continue", "continue", "p $rax", "delete", "kill")
    assert "Old value = 0\nNew value = 1" in text
    assert "Old value = 1\nNew value = 2" in text
    assert values(text) == ["2"]
    assert guest.end()[0] == 130


def test_back_in_time(debug, tmp_path: Path) -> None:
    file = elf(tmp_path)
    guest = debug(file, "--mode", "l64", "-S", "--reverse")
    text = guest.gdb(
        "break done", "continue", "p $rax", "reverse-stepi", "reverse-stepi", "info symbol $pc",
        "break again",
        "reverse-continue", "p $rax", "reverse-continue", "p $rax", "p *(long *)0x9000", "delete",
        "reverse-continue", "info symbol $pc", "continue",
        file=file,
    )  # fmt: skip
    assert values(text) == ["3", "2", "1", "1"]
    assert "again + 11 in section" in text
    assert "start in section" in text
    assert "No more reverse-execution history" in text
    assert guest.end()[0] == 7


def test_ctrl_c_then_detach_then_attach_again(debug, tmp_path: Path) -> None:
    spin = tmp_path / "spin.bin"
    spin.write_bytes(bytes.fromhex("66 ff06 0090 ebf9"))  # again: inc dword ptr [0x9000]; jmp again
    guest = debug(spin)
    first = guest.gdb("p/x (long)$pc", "p *(unsigned *)0x9000", "break *0x1234", "detach")
    assert values(first)[0] in ("0x7c00", "0x7c05")
    assert GDB is not None
    words = [GDB, "-nx", "-q", "-iex", "set confirm off", "-ex", f"target remote {guest.socket}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as gdb:
        assert gdb.stdin is not None
        assert gdb.stdout is not None
        gdb.stdin.write("p *(unsigned *)0x9000\ncontinue\n")
        gdb.stdin.flush()
        text = ""
        while "Continuing." not in text:
            text += gdb.stdout.readline()
        time.sleep(1.0)  # "Continuing." is said before the guest runs
        gdb.send_signal(signal.SIGINT)
        rest, _ = gdb.communicate("p *(unsigned *)0x9000\nkill\nquit\n", timeout=time_limit(20))
    assert "Program received signal SIGINT" in rest
    counts = [int(values(first)[1]), *(int(v) for v in re.findall(r"\$\d+ = (\d+)", text + rest))]
    assert len(counts) == 3
    assert counts == sorted(set(counts))
    assert guest.end()[0] == 130


def test_two_vcpus(debug) -> None:
    guest = debug("smp-ping-pong", "-S")
    text = guest.gdb(
        "info threads", "break *0x8000", "continue", "p $_thread", "p $cr0 & 1", "thread 1", "p $cr0 & 1",
        "thread 2", "stepi", "p $_thread", "p/x (long)$pc", "delete", "continue",
    )  # fmt: skip
    assert 'Thread 1 "vCPU 0" (runs)' in text
    assert 'Thread 2 "vCPU 1" (waits)' in text
    assert values(text) == ["2", "0", "1", "2", "0x8002"]
    assert guest.end() == (0, b"AB" * 20 + b"\n")


def test_a_crash_is_looked_at(debug, tmp_path: Path) -> None:
    path = tmp_path / "crash.bin"
    path.write_bytes(bytes.fromhex("bb34120000 0f011d00900000 0f0b"))  # mov ebx, 0x1234; lidt [0x9000]; ud2
    guest = debug(path, "--mode", "p32", "-S")
    text = guest.gdb("continue", "p/x $ebx", "p/x (long)$pc", "monitor disas", "detach")
    assert re.search("Program received signal SIG(SEGV|ILL)", text)
    assert values(text) == ["0x1234", "0x7c0c"]
    assert "ud2" in text
    assert guest.end()[0] in (120, 121)
