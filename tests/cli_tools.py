"""How the tests drive the command line: as a shell does, in a process of its own."""

from __future__ import annotations

import os
import platform
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vmmsim.testing.slow import time_limit

#: `jmp $`: no exit, ever.
SPIN = bytes.fromhex("ebfe")
#: Real mode: jmp 0x0100:0x0000, the talk's page, where there is no memory.
JUMP_INTO_NOTHING = bytes.fromhex("ea00000001")
#: mov al, <code>; out 0xf4, al
EXIT_WITH = "b0{:02x}e6f4"
_COMMAND = [sys.executable, "-m", "vmmsim"]


#: For tests of what is said of /dev/kvm: elsewhere its device is never looked at.
kvm_host = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="KVM for x86 is Linux on x86-64",
)


def no_kvm(device: str) -> str:
    """Why KVM cannot be used on this host when its device is `device`, which is not there."""
    if sys.platform != "linux":
        return "KVM is a part of Linux"
    return f"{device} is missing" if platform.machine() == "x86_64" else "x86 guests need an x86-64 host"


def environment(**extra: str) -> dict[str, str]:
    """This process's, without what would change the command line's answers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VMMSIM_") or k == "VMMSIM_UNICORN"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        kept.pop(name, None)
    return {**kept, **extra}


def vmmsim(*arguments: str | Path, stdin: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
    """Run `vmmsim` to its end; `extra` are environment variables."""
    return subprocess.run(
        [*_COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=time_limit(50),
        env=environment(**extra),
        check=False,
    )


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start `vmmsim` and let it run."""
    return subprocess.Popen([*_COMMAND, *map(str, arguments)], env=environment(), **options)


class Terminal:
    """`vmmsim` on a pty of its own, which is its controlling terminal, as from a shell."""

    def __init__(self, *arguments: str | Path, **extra: str) -> None:
        import termios

        self.master, self.slave = os.openpty()
        self.before = termios.tcgetattr(self.slave)
        launch = (
            "import fcntl, runpy, sys, termios\n"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            f"sys.argv = ['vmmsim', *{[str(a) for a in arguments]!r}]\n"
            "runpy.run_module('vmmsim', run_name='__main__')\n"
        )
        self.child = subprocess.Popen(
            [sys.executable, "-c", launch],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env=environment(**extra),
        )
        self.text = b""

    def expect(self, text: bytes, seconds: float = 20) -> None:
        """Read until `text` has come."""
        end = time.monotonic() + time_limit(seconds)
        while text not in self.text:
            if not select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"no {text!r} in {self.text!r}")
            self.text += os.read(self.master, 4096)

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def settings(self) -> list[Any]:
        import termios

        return termios.tcgetattr(self.slave)

    def end(self, seconds: float = 20) -> int:
        """The exit code; what comes meanwhile is read, so that the child cannot block."""
        deadline = time.monotonic() + time_limit(seconds)
        while self.child.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"still running: {self.text!r}")
            if select.select([self.master], [], [], 0.02)[0]:
                self.text += os.read(self.master, 4096)
        while select.select([self.master], [], [], 0)[0]:
            self.text += os.read(self.master, 4096)
        return self.child.returncode

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGKILL)
        self.child.wait(time_limit(20))
        os.close(self.master)
        os.close(self.slave)
