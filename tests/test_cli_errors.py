"""Bad input: each is one clear line on stderr, a hint, and its own exit code; never a traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import JUMP_INTO_NOTHING, SPIN, environment, kvm_host, start, vmmsim

from vmmsim.testing.slow import time_limit

posix = pytest.mark.skipif(os.name != "posix", reason="signals and closed descriptors as POSIX has them")


@pytest.fixture
def spin(tmp_path: Path) -> Path:
    image = tmp_path / "spin"
    image.write_bytes(SPIN)
    return image


def check(result: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    text = result.stderr.decode()
    assert result.returncode == code, text
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("vmmsim: error: ")]
    assert len(errors) == 1, text
    for word in words:
        assert word in text, text


# Usage.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "loop", "--bakcend", "kvm"], ["there is no option --bakcend", "did you mean --backend"]),
        (["rnu", "loop"], ["there is no verb 'rnu'", "did you mean 'run'"]),
        (["run"], ["missing argument", "vmmsim run --help"]),
        (["run", "loop", "-b", "unicron"], ["there is no backend 'unicron'", "did you mean 'unicorn'?"]),
        (["run", "loop", "-b", "xen"], ["there is no backend 'xen'", "auto, kvm, unicorn"]),
        (["run", "loop", "-m", "64X"], ["'64X' is not a size", "512KiB"]),
        (["run", "loop", "-m", "0"], ["no memory", "-m 64M"]),
        (["run", "loop", "-m", "1049577B"], ["not a multiple of 4 KiB"]),
        (["run", "loop", "-m", "1T"], ["1 TiB", "at most 512 GiB"]),
        (["run", "loop", "-m", "512K"], ["needs a memory of 1 MiB"]),
        (["run", "loop", "--timeout", "soon"], ["'soon' is not a time", "200ms"]),
        (["run", "loop", "--timeout", "0"], ["'0' is not a time"]),
        (["run", "loop", "--max-insns", "0"], ["budget of 0 insns"]),
        (["run", "loop", "--max-exits", "-1"], ["budget of -1 exits"]),
        (["run", "loop", "--load", "0x1000"], ["built-in guest", "--load and --mode are for files"]),
        (["run", "loop", "--entry", "main"], ["no symbol 'main'"]),
        (["run", "loop", "--device", "gpu"], ["there is no device 'gpu'", "char-in"]),
        (["run", "loop", "--serial", "com1"], ["there is no serial port 'com1'", "file:PATH"]),
        (["run", "loop", "--stdin", "/nonexistent"], ["/nonexistent"]),
        (["run", "loop", "--trace", "/nonexistent/t"], ["'/nonexistent/t' cannot be written"]),
        (["devices", "--model", "laptop"], ["there is no machine model 'laptop'", "bare"]),
        (["exits", "loop", "--limit", "0"], ["invalid value for '--limit'"]),
        (["asm", "--bits", "8", "x"], ["invalid value for '--bits'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) > 1 else "",
)
def test_usage_errors_are_125(arguments: list[str], words: list[str]) -> None:
    check(vmmsim(*arguments), 125, *words)


def test_no_verb_shows_the_help_on_stderr() -> None:
    result = vmmsim()

    assert result.returncode == 125
    assert result.stdout == b""
    assert b"doctor" in result.stderr


@pytest.mark.parametrize("verb", ["", "run", "exits", "step", "demo", "doctor", "guests", "devices", "asm"])
def test_help_is_on_stdout_with_code_0(verb: str) -> None:
    result = vmmsim(*verb.split(), "--help")

    assert result.returncode == 0
    assert result.stdout.startswith(b"Usage: vmmsim")
    assert result.stderr == b""


# Images.


def test_no_such_image_is_127() -> None:
    check(vmmsim("run", "/nonexistent.bin"), 127, "there is no image '/nonexistent.bin'", "vmmsim guests")


def test_a_misspelled_guest_is_127_and_suggests_the_nearest() -> None:
    check(vmmsim("run", "gess"), 127, "there is no guest and no image 'gess'", "did you mean 'guess'?")


def test_a_missing_source_is_127() -> None:
    check(vmmsim("asm", "/nonexistent.asm"), 127, "no source file")


def test_a_source_with_an_error_names_the_line(tmp_path: Path) -> None:
    pytest.importorskip("keystone", reason="the extra asm is not installed")
    source = tmp_path / "bad.asm"
    source.write_text("nop\nmov al, bogus bogus\n")

    check(vmmsim("asm", source), 125, "does not assemble", "line 2")


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", [], ["is empty"]),
        (bytes(2 << 20), ["-m", "1M"], ["does not fit the guest's memory", "-m"]),
        (SPIN, ["--load", "0x1000"], ["does not fit"]),
        (SPIN, ["--load", "zero"], ["'zero' is not an address"]),
        (SPIN, ["--mode", "l65"], ["there is no mode 'l65'", "did you mean 'l64"]),
        (SPIN, ["--mode", "real", "--entry", "0x200000"], ["0x200000", "real"]),
        (SPIN, ["--stdin", "example"], ["no input of its own"]),
        (b"\x7fELF\x02\x01", [], ["truncated"]),
    ],
    ids=["empty", "too large", "in a hole", "bad address", "bad mode", "bad entry", "no example", "bad ELF"],
)
def test_unfit_images_are_125(tmp_path: Path, content: bytes, options: list[str], words: list[str]) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)

    check(vmmsim("run", image, "-b", "unicorn", "-q", *options), 125, *words)


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    check(vmmsim("run", tmp_path, "-b", "unicorn"), 125, str(tmp_path))


# Backends.


@kvm_host
@pytest.mark.parametrize(
    ("device", "words"),
    [("/nonexistent", ["/nonexistent is missing"]), ("/dev/null", ["/dev/null is not a KVM"])],
)
def test_kvm_by_name_is_never_replaced(device: str, words: list[str]) -> None:
    result = vmmsim("run", "loop", "-b", "kvm", VMMSIM_KVM_DEVICE=device)

    check(result, 126, "backend 'kvm' is not available", "hint:", *words)
    assert b"unicorn" not in result.stdout


REFUSING = """
import os, sys
real = os.open
def refuse(path, *arguments, **keywords):
    if path == "/dev/kvm":
        raise OSError({number}, os.strerror({number}), path)
    return real(path, *arguments, **keywords)
os.open = refuse
from vmmsim.cli.main import main
main(["run", "loop", "-b", "{backend}"])
"""


@kvm_host
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, ["not permitted to open /dev/kvm", "usermod -aG kvm"]),
        (errno.EBUSY, ["/dev/kvm is busy", "stop the other hypervisor"]),
    ],
    ids=["not permitted", "busy"],
)
def test_a_kvm_that_refuses_is_told_with_the_fix(number: int, words: list[str]) -> None:
    def run(backend: str) -> subprocess.CompletedProcess[bytes]:
        code = REFUSING.format(number=number, backend=backend)
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, capture_output=True, timeout=time_limit(50), env=environment(), check=False
        )

    check(run("kvm"), 126, "backend 'kvm' is not available", *words)
    fallen_back = run("auto")
    assert fallen_back.returncode == 0
    assert f"backend unicorn (kvm: {words[0]}" in fallen_back.stderr.decode()


def test_an_unknown_engine_of_unicorn_is_told() -> None:
    result = vmmsim("run", "loop", "-b", "unicorn", VMMSIM_UNICORN="fast")

    assert result.returncode in (125, 126)
    assert b"VMMSIM_UNICORN" in result.stderr
    assert b"Traceback" not in result.stderr


# Guests that misbehave.


def test_a_spinning_guest_ends_in_time(backend_name: str, spin: Path) -> None:
    began = time.monotonic()
    result = vmmsim("run", spin, "-b", backend_name, "--timeout", "300ms")

    assert result.returncode == 124
    assert time.monotonic() - began < time_limit(10)
    text = result.stderr.decode()
    for part in ("the budget of 0.3 seconds is spent", "jmp", "no exit at all"):
        assert part in text


def test_a_jump_into_nothing_is_121(backend_name: str, tmp_path: Path) -> None:
    image = tmp_path / "jump"
    image.write_bytes(JUMP_INTO_NOTHING)
    result = vmmsim("run", image, "-b", backend_name)
    text = result.stderr.decode()

    assert result.returncode == 121
    for part in ("post-mortem", "fetch", "0x1000", "no memory"):
        assert part in text


WATCHED = """
import os, resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
unit = 1 if sys.platform == 'darwin' else 1024  # macOS counts bytes, others KiB
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit >> 20)
"""


def _memory_of(*arguments: str | Path) -> tuple[int, int]:
    """(exit code, peak memory in MiB) of a run."""
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, sys.executable, "-m", "vmmsim", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=time_limit(60),
        env=environment(),
        check=True,
    )
    code, peak = result.stdout.split()[-2:]
    return int(code), int(peak)


@posix
@pytest.mark.parametrize(
    "code",
    [
        # mov ecx, 1000000; next: mov [0x10000000], eax; loop next; hlt
        "b940420f00 890500000010 e2f8 f4",
        # mov ecx, 100000; mov edi, 0x10000000; next: mov [edi], eax; add edi, 4; loop next; hlt
        "b9a0860100 bf00000010 8907 83c704 e2f9 f4",
    ],
    ids=["a million in one place", "a hundred thousand places"],
)
def test_writes_to_a_hole_take_no_memory(tmp_path: Path, code: str) -> None:
    image = tmp_path / "hole"
    image.write_bytes(bytes.fromhex(code))

    quiet, baseline = _memory_of("run", "loop", "-b", "unicorn")
    ended, peak = _memory_of("run", image, "-b", "unicorn", "--mode", "p32", "--timeout", "50")

    assert (quiet, ended) == (0, 0)
    assert peak - baseline < 24


def test_what_nobody_claims_is_counted(backend_name: str, tmp_path: Path) -> None:
    image = tmp_path / "lost"
    # in al, 0x99; out 0x99, al; ud2 with an IVT of zeros ends nowhere good
    image.write_bytes(bytes.fromhex("e499 e699 ea00000001"))
    result = vmmsim("run", image, "-b", backend_name)

    assert b"port: 1 reads, 1 writes that no device took" in result.stderr
    assert b"port 0x0099 = 0xff  nobody" in result.stderr


# Closed descriptors and signals.


@posix
def test_a_closed_stdin_is_an_input_that_is_over() -> None:
    result = subprocess.run(
        ["sh", "-c", '"$0" -m vmmsim run echo -b unicorn -q <&-', sys.executable],
        capture_output=True,
        timeout=time_limit(50),
        env=environment(),
        check=False,
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("typed", [20, 5000], ids=["at the end", "on the way"])
def test_a_trace_that_finds_no_room_is_told_and_the_guest_runs_on(tmp_path: Path, typed: int) -> None:
    (tmp_path / "input").write_bytes(b"k" * typed + b"\n")
    result = vmmsim("run", "echo", "--stdin", tmp_path / "input", "--trace", "/dev/full", "-q")

    assert result.stdout == b"k" * typed + b"\n"
    assert result.stderr.decode().splitlines() == [
        "vmmsim: warning: the trace '/dev/full' is not complete: No space left on device"
    ]
    assert result.returncode == 0


@posix
@pytest.mark.parametrize("verb", ["run", "exits"])
def test_a_reader_that_goes_away_ends_it_without_a_traceback(verb: str, tmp_path: Path) -> None:
    # More than fits into a pipe: it cannot all be written before the reader goes.
    (tmp_path / "input").write_bytes(b"k" * 200_000)
    reading, writing = os.pipe()
    child = start(
        verb, "echo", "-b", "unicorn", "-q", "--stdin", tmp_path / "input",
        stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    _, stderr = child.communicate(timeout=time_limit(50))

    assert child.returncode == 141
    assert b"BrokenPipe" not in stderr
    assert b"Traceback" not in stderr


@posix
@pytest.mark.parametrize("verb", [["guests"], ["devices"], ["doctor"], ["--help"], ["demo"]])
def test_a_stdout_that_is_full_or_closed_is_no_traceback(verb: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    child = start(*verb, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, stderr = child.communicate(timeout=time_limit(50))

    assert child.returncode == 141
    assert stderr == b""


@posix
@pytest.mark.parametrize(
    "verb",
    [["guests"], ["exits", "lwn", "-q"], ["run", "lwn", "-q", "--json"], ["run", "lwn", "-q"]],
)
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_stdout_that_cannot_be_written_is_an_error_in_words(verb: list[str], redirection: str) -> None:
    if redirection == ">/dev/full" and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    result = subprocess.run(
        ["sh", "-c", f'"$0" -m vmmsim "$@" {redirection}', sys.executable, *verb],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=time_limit(50),
        env=environment(VMMSIM_BACKEND="unicorn"),
        check=False,
    )

    check(result, 125, "standard output", "hint:")


@posix
def test_a_stderr_that_cannot_be_written_changes_no_exit_code() -> None:
    for redirection in ("2>&-", "2>/dev/full"):
        result = subprocess.run(
            ["sh", "-c", f'"$0" -m vmmsim run fault -b unicorn {redirection}', sys.executable],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=time_limit(50),
            env=environment(),
            check=False,
        )
        assert (result.returncode, result.stdout) == (120, b"")


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("verb", ["run", "exits"])
def test_signals_end_a_spinning_guest(backend_name: str, spin: Path, verb: str, name: str, code: int) -> None:
    child = start(
        verb,
        spin,
        "-b",
        backend_name,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    child.stderr.readline()  # the backend is chosen
    time.sleep(0.3)
    child.send_signal(getattr(signal, name))
    # How soon, test_ctrl_c.py looks at: a busy host is late by itself.
    _, stderr = child.communicate(timeout=time_limit(20))

    assert child.returncode == code
    assert b"Traceback" not in stderr


@posix
def test_ctrl_c_ends_a_guest_that_waits_for_input(backend_name: str) -> None:
    child = start(
        "run",
        "echo",
        "-b",
        backend_name,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    child.stderr.readline()
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=time_limit(20))

    assert child.returncode == 130
    assert b"stopped by Ctrl-C" in stderr


@posix
def test_the_time_runs_out_for_a_guest_that_waits_for_input(backend_name: str) -> None:
    child = start(
        "run", "echo", "-b", backend_name, "--timeout", "300ms",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.wait(time_limit(20)) == 124
    _, stderr = child.communicate(timeout=time_limit(20))

    assert b"seconds is spent" in stderr


# Ourselves.


def test_an_internal_error_is_short_and_says_how_to_get_the_traceback() -> None:
    code = (
        "import vmmsim.guests, vmmsim.cli.main\n"
        "def broken(): raise RuntimeError('the works')\n"
        "vmmsim.guests.names = broken\n"
        "vmmsim.cli.main.main(['guests'])\n"
    )
    command = [sys.executable, "-c", code]
    short = subprocess.run(
        command, capture_output=True, timeout=time_limit(50), env=environment(), check=False
    )
    long = subprocess.run(
        command, capture_output=True, timeout=time_limit(50), env=environment(VMMSIM_DEBUG="1"), check=False
    )

    check(short, 125, "internal error: RuntimeError", "the works", "VMMSIM_DEBUG=1")
    assert long.returncode == 125
    assert b"Traceback" in long.stderr
