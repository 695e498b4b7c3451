"""`vmmsim migrate` and `vmmsim receive`, as two processes."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cli_tools import EXIT_WITH, SPIN, start, vmmsim
from test_migration import CutWire, carried

from vmmsim import Machine
from vmmsim.budget import exits
from vmmsim.cli.main import main
from vmmsim.errors import MigrationError
from vmmsim.guests import load
from vmmsim.snapshot.container import load as load_snapshot
from vmmsim.snapshot.container import save
from vmmsim.snapshot.receive import receive
from vmmsim.snapshot.wire import Address, Listener
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="uses Unix sockets")

GUESS = ("guess", "--stdin", "example", "--seed", "7", "-b", "unicorn")


class Receiver:
    """`vmmsim receive` that listens already; `url` is where."""

    def __init__(self, url: str, *arguments: str | Path) -> None:
        self.child = start(
            "receive", url, "-b", "unicorn", *arguments, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.child.stderr is not None
        self.said = self.child.stderr.readline()
        found = re.search(rb"waiting for a machine at (\S+)", self.said)
        assert found is not None, self.said + self.child.stderr.read()
        self.url = found[1].decode()

    def end(self) -> tuple[int, bytes, bytes]:
        out, err = self.child.communicate(timeout=time_limit(20))
        return self.child.returncode, out, self.said + err

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *error: object) -> None:
        self.child.kill()
        self.child.communicate()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"unix:{tmp_path / 'socket'}"


@pytest.fixture(scope="module")
def whole() -> bytes:
    """What the game prints when it stays where it is."""
    return vmmsim("run", *GUESS, "-q").stdout


def example(tmp_path: Path) -> Path:
    path = tmp_path / "input"
    path.write_bytes(load("guess").input or b"")
    return path


def test_a_game_begins_here_and_ends_there(url: str, tmp_path: Path, whole: bytes) -> None:
    with Receiver(url, "--stdin", example(tmp_path)) as receiver:
        here = vmmsim("migrate", *GUESS, "--to", url, "--stop", "--after", "exit:100")
        code, out, err = receiver.end()

    assert here.returncode == 0, here.stderr
    assert code == 0, err
    assert here.stdout + out == whole
    assert re.search(
        rb"moved to unix:\S+ \(unicorn\S*\): stop and copy, \d+ pages, \d+ bytes in", here.stderr
    )
    assert re.search(rb"the guest stood still for [\d.]+ ms", here.stderr)
    assert b"received from vmmsim/" in err


def test_over_tcp_with_a_key_file_and_json_on_both_sides(tmp_path: Path, whole: bytes) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef\n")
    with Receiver("tcp://127.0.0.1:0", "--key-file", key, "--stdin", example(tmp_path), "--json") as receiver:
        here = vmmsim(
            "migrate",
            *GUESS,
            "--to",
            receiver.url,
            "--stop",
            "--after",
            "exit:100",
            "--key-file",
            key,
            "--json",
        )
        code, out, err = receiver.end()

    assert here.returncode == 0, here.stderr
    assert code == 0, err
    report = json.loads(here.stdout)
    assert report["moved"] is True
    assert report["live"] is False
    assert report.keys() >= {"rounds", "pages", "bytes", "seconds", "pause_seconds", "bytes_per_second"}
    end = json.loads(out)
    assert end["exit"] == "halt"
    assert whole.endswith(base64.b64decode(end["serial"]))


def test_a_guest_without_end_moves_while_it_runs(url: str, tmp_path: Path) -> None:
    image = tmp_path / "spin"
    image.write_bytes(SPIN)
    with Receiver(url, "--timeout", "0.2s") as receiver:
        here = vmmsim("migrate", image, "-b", "unicorn", "--to", url, "--after", "seconds:0.1")
        code, _, err = receiver.end()

    assert here.returncode == 0, here.stderr
    assert re.search(rb"\d+ rounds, .*\n.*stood still for .* and [\d.]+ ms at the beginning", here.stderr)
    assert code == 124, err


def test_the_receiver_ends_with_the_guests_code(url: str, tmp_path: Path) -> None:
    image = tmp_path / "ends"
    image.write_bytes(bytes.fromhex(EXIT_WITH.format(42)))
    with Receiver(url, "--serial", "none") as receiver:
        here = vmmsim("migrate", image, "-b", "unicorn", "--to", url, "--stop")
        code, _, err = receiver.end()

    assert here.returncode == 0, here.stderr
    assert code == 42, err


def test_a_snapshot_file_moves_when_it_prints_something(url: str, tmp_path: Path, whole: bytes) -> None:
    path, typed = tmp_path / "game.vsnap", tmp_path / "next"
    source = BytesSource(load("guess").input)
    with Machine.for_guest("guess", backend="unicorn", seed=7, source=source) as machine:
        machine.run(budget=exits(100))
        save(machine.snapshot(), path)
        printed = machine.output.data
    typed.write_bytes(load("guess").input[source.position :])  # as for run, what the guest reads next
    with Receiver(url, "--stdin", typed) as receiver:
        here = vmmsim(
            "migrate", path, "-b", "unicorn", "--stdin", typed, "--to", url, "--stop",
            "--after", r"serial:Score: \d won, 1",
        )  # fmt: skip
        code, out, err = receiver.end()

    assert here.returncode == 0, here.stderr
    assert code == 0, err
    assert re.search(rb"Score: \d won, 1$", here.stdout)
    assert printed + here.stdout + out == whole


def test_with_nobody_there_the_guest_runs_on_here(url: str, whole: bytes) -> None:
    here = vmmsim("migrate", *GUESS, "--to", url, "--after", "insns:500")

    assert here.returncode == 0
    assert here.stdout == whole
    assert b"not moved: nobody answers at" in here.stderr
    assert b"the guest runs on here" in here.stderr


def test_a_receiver_waits_for_the_next_when_one_comes_to_nothing(
    url: str, tmp_path: Path, whole: bytes
) -> None:
    with Receiver(url, "--stdin", example(tmp_path)) as receiver:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(url.removeprefix("unix:"))
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.recv(1000)
        here = vmmsim("migrate", *GUESS, "--to", url, "--stop", "--after", "exit:100")
        code, out, err = receiver.end()

    assert code == 0, err
    assert b"nothing came of it: what answers there is no vmmsim migration" in err
    assert here.stdout + out == whole


def test_a_receiver_can_give_up_after_one(url: str) -> None:
    with Receiver(url, "--once") as receiver:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(url.removeprefix("unix:"))
        code, out, err = receiver.end()

    assert (code, out) == (125, b"")
    assert b"the connection to the source ended too early" in err
    assert b"Traceback" not in err


def test_a_receiver_that_is_stopped_by_a_signal_leaves_no_socket(url: str) -> None:
    with Receiver(url) as receiver:
        receiver.child.send_signal(signal.SIGINT)
        code, _, err = receiver.end()

    assert code == 130, err
    assert not Path(url.removeprefix("unix:")).exists()


def test_nobody_knows_where_it_runs_and_it_is_kept(url: str, tmp_path: Path) -> None:
    listener = Listener(Address.parse(url))
    kept = tmp_path / "kept.vsnap"
    child = start(
        "migrate", *GUESS, "--to", url, "--stop", "--after", "exit:100", "--keep", kept,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wire = listener.accept(5, 20)
    assert wire is not None
    # AUTH, READY and LOADED arrive; of TAKEN only one byte.
    size = len(carried()[1]) - 39
    listener.close()
    lossy = CutWire(wire._sock, 5, size)
    try:
        receive(lossy, backend="unicorn").machine.close()
    except MigrationError as error:
        pytest.fail(f"{error} {child.communicate(timeout=time_limit(20))}")
    _, err = child.communicate(timeout=time_limit(20))

    assert child.returncode == 125
    assert b"has not confirmed it" in err
    assert b"run it only if it does not run there" in err
    assert load_snapshot(kept).input_position > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("receive", "tcp://127.0.0.1:0"), "needs a key"),
        (("receive", "nonsense"), "is no address"),
        (("receive", "unix:/nonexistent/x"), "cannot listen at unix:/nonexistent/x"),
        (("migrate", "guess", "--to", "tcp://127.0.0.1:1"), "needs a key"),
        (("migrate", "guess"), "--to"),
        (("migrate", "guess", "--to", "unix:x", "--after", "lunch"), "'lunch' is no moment of a run"),
        (("migrate", "guess", "--to", "unix:x", "--after", "exit:0"), "'exit:0' is no moment of a run"),
        (("migrate", "guess", "--to", "unix:x", "--after", "guest"), "is no moment to move at"),
        (("migrate", "guess", "--to", "unix:x", "--after", "seconds:soon"), "soon"),
        (("migrate", "guess", "--to", "unix:x", "--after", "serial:("), "is no regular expression"),
        (("migrate", "guess", "--to", "unix:x", "--key-file", "/nonexistent"), "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(
    arguments: tuple[Any, ...], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    out, err = capfd.readouterr()
    assert ended.value.code == 125
    assert words in err
    assert "internal error" not in err
    assert out == ""


def test_other_hosts_need_to_be_allowed() -> None:
    key = "0123456789abcdef"
    result = vmmsim("receive", "tcp://0.0.0.0:0", VMMSIM_MIGRATION_KEY=key)

    assert result.returncode == 125
    assert b"--allow-remote" in result.stderr
    began = time.monotonic()
    allowed = vmmsim(
        "receive", "tcp://0.0.0.0:0", "--allow-remote", "--wait", "200ms", VMMSIM_MIGRATION_KEY=key
    )
    assert allowed.returncode == 124
    assert b"nothing has come in time" in allowed.stderr
    assert time.monotonic() - began < time_limit(10)
