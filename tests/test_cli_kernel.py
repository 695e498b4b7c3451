"""`--kernel` on the command line: what is wrong with a kernel, and one that panics."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
from cli_tools import vmmsim
from test_loaders_linux import bzimage

from vmmsim.exits import BudgetSpent, SystemEvent
from vmmsim.outcome import Outcome, outcome

LINUX = Path(__file__).resolve().parents[2] / "shared" / "guests" / "linux"
MIB = 1 << 20

needs_linux = pytest.mark.skipif(
    not LINUX.is_dir(), reason="no kernels beside this checkout (shared/guests/linux)"
)


def multiboot(flags: int) -> bytes:
    """A Multiboot header whose addresses say that the file goes to 1 MiB."""
    header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    return header + struct.pack("<IIIII", MIB, MIB, 0, 0, MIB + 32) + b"\xf4" * 64


@pytest.mark.parametrize(
    ("kernel", "arguments", "words"),
    [
        (bzimage()[:-100], (), "is a truncated bzImage"),
        (bzimage()[:600], (), "is a truncated bzImage"),
        (b"", (), "is empty"),
        (b"#!/bin/sh\necho a script\n" * 99, (), "is no kernel"),
        (gzip.compress(bzimage()), (), "is compressed with gzip"),
        (bytes(56) + b"ARM\x64" + bytes(999), (), "is a Linux kernel for AArch64"),
        (bzimage(), ("-m", "8M"), "give at least 17M with -m"),
        (bzimage(), ("-m", "24M", "--initrd", "{initrd}"), "the initrd of 16 MiB does not fit"),
        (bzimage(), ("--append", "x" * 256), "the command line has 256 bytes, and this kernel takes 255"),
        (multiboot(1 << 16 | 1 << 3), (), "requires the Multiboot feature of bit 3"),
        (multiboot(1 << 16 | 1 << 2), (), "requires a video mode"),
        (multiboot(1 << 16), ("-m", "24M", "--initrd", "{initrd},{initrd}"), "module of 16 MiB does not fit"),
        (bzimage(), ("--load", "0"), "--kernel with --load"),
        (bzimage(), ("loop",), "--kernel with a guest"),
    ],
    ids=[
        "cut", "cut-in-its-header", "empty", "script", "gzip", "arm64", "memory", "initrd", "command-line",
        "multiboot-flag", "multiboot-video", "module", "load", "guest",
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_a_remedy(
    kernel: bytes, arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    file, initrd = tmp_path / "kernel", tmp_path / "initrd"
    file.write_bytes(kernel)
    with initrd.open("wb") as sparse:
        sparse.truncate(16 * MIB)
    given = [word.replace("{initrd}", str(initrd)) for word in arguments]
    done = vmmsim("run", "-b", "unicorn", "-q", "--kernel", file, *given)
    said = done.stderr.decode()

    assert (done.returncode, done.stdout) == (125, b"")
    assert words in said
    assert [line.split(":")[:2] for line in said.splitlines()] == [["vmmsim", " error"], ["vmmsim", " hint"]]


def test_a_file_that_is_not_there_is_127(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bzimage())
    for arguments in (["--kernel", tmp_path / "no"], ["--kernel", kernel, "--initrd", tmp_path / "no"]):
        assert vmmsim("run", "-b", "unicorn", *arguments).returncode == 127


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (0, b"all is well\n", None),
        (0, b"Kernel panic - not syncing: Oops\r\nCPU: 0\r\n", (121, "Oops")),
        (0, b"x\n[    1.520000] Kernel panic - not syncing: No init found.\r\n", (121, "No init found.")),
        (
            0,
            b"[1234567.000001] Kernel panic - not syncing: a\n[2.0] Kernel panic - not syncing: b",
            (121, "b"),
        ),
        # It stood still until its time was spent, which is a code of its own.
        (124, b"Kernel panic - not syncing: stays\r\n", (124, "stays")),
        (0, b"$ grep 'Kernel panic - not syncing' log\r\n", None),
        (0, b"", None),
    ],
)
def test_a_panic_is_found_in_what_was_printed(
    code: int, output: bytes, expected: tuple[int, str] | None
) -> None:
    end = BudgetSpent("seconds", 1) if code else SystemEvent("reset")
    result = outcome(end, output)
    if expected is None:
        assert result == outcome(end)
        assert result.code == code
    else:
        text = f"Kernel panic - not syncing: {expected[1]}"
        note = f"the kernel panicked: {text}"
        assert result == Outcome(expected[0], abnormal=True, note=note, panicked=text)


@needs_linux
@pytest.mark.unicorn
def test_a_kernel_that_panics_ends_with_121_and_its_text() -> None:
    done = vmmsim(
        "run", "-b", "unicorn", "-q", "-m", "64M", "--stdin", "none", "--timeout", "40",
        "--kernel", LINUX / "bzImage-tiny64-lz4", "--append", "console=ttyS0 panic=-1 reboot=k quiet",
    )  # fmt: skip
    said = done.stderr.decode()
    panic = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"

    assert done.returncode == 121
    assert panic in done.stdout.decode()
    assert "--- post-mortem: the guest asked for a reset" in said
    assert said.splitlines()[-1] == f"vmmsim: the kernel panicked: {panic}"


@needs_linux
@pytest.mark.unicorn
def test_a_kernel_that_reboots_by_itself_ends_with_0() -> None:
    done = vmmsim(
        "run", "-b", "unicorn", "-q", "-m", "64M", "--stdin", "none", "--timeout", "40",
        "--kernel", LINUX / "bzImage-tiny64-lz4", "--initrd", LINUX / "initrd-hello64.cpio",
        "--append", "console=ttyS0 panic=-1 reboot=k quiet",
    )  # fmt: skip

    assert (done.returncode, done.stderr.decode().splitlines()[-1:]) == (
        0,
        ["vmmsim: the guest asked for a reset"],
    )
