"""Where the guest's characters come from and go to, with real files, pipes and ptys."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.errors import HostError, UsageError
from vmmsim.streams import (
    BufferSink,
    BytesSource,
    FdSource,
    FileSink,
    FileSource,
    NullSink,
    OutputClosed,
    PtyPort,
    QueueSource,
    Source,
    StdoutSink,
    TeeSink,
    ThreadSource,
    open_port,
    open_source,
)
from vmmsim.testing.slow import time_limit

posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes that select() knows, or ptys")


def drain(source: Source) -> bytes:
    return bytes(iter(source.wait, None))


def run_python(code: str, **arguments: object) -> subprocess.CompletedProcess[bytes]:
    # Set, it would make Python's own stdout unbuffered, and its failure at exit go away.
    arguments["env"] = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output="stdout" not in arguments,
        timeout=time_limit(30),
        **arguments,  # type: ignore[call-overload]
    )


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


# Sources.


@given(st.binary(max_size=50))
def test_bytes_source_gives_its_bytes_and_ends(data: bytes) -> None:
    source = BytesSource(data)

    assert source.ready() == bool(data)
    assert drain(source) == data
    assert source.ended
    assert source.get() is None


@given(st.lists(st.binary(max_size=10), max_size=10))
def test_queue_source_gives_what_was_sent_in_order(pieces: list[bytes]) -> None:
    source = QueueSource()
    for piece in pieces:
        source.send(piece)
    source.end()

    assert drain(source) == b"".join(pieces)
    assert source.ended


def test_queue_source_without_input_is_not_over() -> None:
    source = QueueSource()

    assert (source.get(), source.ready(), source.ended) == (None, False, False)


def test_file_source_reads_all_of_a_file_larger_than_its_buffer(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "in").write_bytes(data)
    source = FileSource(str(tmp_path / "in"))

    assert not source.ended
    assert drain(source) == data
    assert source.ended
    source.close()
    source.close()


def test_an_empty_file_is_over_at_once(tmp_path: Path) -> None:
    (tmp_path / "in").touch()
    source = FileSource(str(tmp_path / "in"))

    assert source.ended
    source.close()


@posix
@pytest.mark.parametrize("make", [FdSource, ThreadSource])
def test_a_pipe_is_read_as_it_comes(pipe: tuple[int, int], make: Callable[[int], Source]) -> None:
    out, into = pipe
    source = make(out)
    assert source.get() is None
    assert not source.ended
    os.write(into, b"ab")
    assert (source.wait(), source.wait()) == (ord("a"), ord("b"))
    threading.Timer(0.05, os.write, (into, b"c")).start()
    assert source.wait() == ord("c")
    os.close(into)
    assert source.wait() is None
    assert source.ended
    source.close()


@posix
@pytest.mark.parametrize("make", [FdSource, ThreadSource])
@pytest.mark.parametrize("how", ["thread", "signal"])
def test_interrupt_ends_a_wait_within_50_ms(
    pipe: tuple[int, int], make: Callable[[int], Source], how: str
) -> None:
    source = make(pipe[0])
    sent: list[float] = []

    def interrupt(*_: object) -> None:
        sent.append(time.monotonic())
        source.interrupt()

    if how == "thread":
        threading.Timer(0.1, interrupt).start()
    else:
        saved = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        assert source.wait() is None
    finally:
        if how == "signal":
            signal.signal(signal.SIGALRM, saved)
    # 50 ms is the promise; the rest is for a busy machine.
    assert time.monotonic() - sent[0] < time_limit(0.05 + 0.2)
    assert not source.ended
    source.close()


def test_an_interrupt_is_used_up_by_one_wait_and_loses_no_input() -> None:
    source = QueueSource()
    source.interrupt()
    source.send(b"a")

    assert source.wait() == ord("a")
    assert source.wait() is None
    source.send(b"b")
    assert source.wait() == ord("b")


def test_rearm_forgets_an_interrupt_that_ended_nothing() -> None:
    source = QueueSource()
    source.interrupt()
    source.rearm()
    threading.Timer(0.1, source.send, (b"a",)).start()

    assert source.wait() == ord("a")


@posix
def test_a_closed_descriptor_is_an_input_that_is_over(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])

    assert FdSource(pipe[0]).ended


@posix
def test_a_descriptor_above_1023_is_read_too(pipe: tuple[int, int]) -> None:
    import fcntl
    import resource

    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1500 or sys.platform == "darwin":
        pytest.skip("this process may not have a descriptor of 1500")
    high = fcntl.fcntl(pipe[0], fcntl.F_DUPFD, 1500)
    os.write(pipe[1], b"x")

    assert FdSource(high).wait() == ord("x")
    os.close(high)


@posix
def test_the_filter_sees_keys_while_the_guest_reads_nothing(pipe: tuple[int, int]) -> None:
    seen = threading.Event()

    def filter(data: bytes) -> bytes:
        if b"!" in data:
            seen.set()
        return data.replace(b"!", b"")

    source = ThreadSource(pipe[0], filter)
    os.write(pipe[1], b"a!b")

    assert seen.wait(time_limit(5))
    assert (source.wait(), source.wait()) == (ord("a"), ord("b"))
    source.close()


@posix
def test_closing_a_thread_source_ends_its_thread(pipe: tuple[int, int]) -> None:
    before = threading.active_count()
    source = ThreadSource(pipe[0])
    source.close()

    assert threading.active_count() == before


@posix
def test_a_closed_stdin_is_no_input_and_touches_no_other_descriptor() -> None:
    # With 0 closed the first file opened gets that number; it must not be read as stdin.
    code = (
        "import os\n"
        "fd = os.open('/etc/passwd', os.O_RDONLY)\n"
        "from vmmsim.streams import open_source\n"
        "source = open_source('-')\n"
        "print(fd, source.wait(), source.ended)"
    )
    done = run_python(code, preexec_fn=lambda: os.close(0))

    assert done.stdout == b"0 None True\n", done.stderr


def test_stdin_from_a_pipe_and_from_nothing() -> None:
    code = "from vmmsim.streams import *; print(bytes(iter(open_source('-').wait, None)))"

    assert run_python(code, input=b"typed\n").stdout.strip() == rb"b'typed\n'"
    assert run_python(code, stdin=subprocess.DEVNULL).stdout.strip() == b"b''"


# Files that cannot be opened.


@pytest.mark.parametrize("make", [FileSource, FileSink], ids=["source", "sink"])
def test_files_that_cannot_be_opened_are_told_by_name(make: Callable[[str], object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing"):
        make(str(tmp_path / "missing" / "file"))
    with pytest.raises(UsageError, match="is a directory"):
        make(str(tmp_path))
    with pytest.raises(UsageError, match="no file name"):
        make("")
    with pytest.raises(HostError, match="null"):
        make("a\0b")


@posix
@pytest.mark.parametrize("make", [FileSource, FileSink], ids=["source", "sink"])
def test_a_file_without_permission_is_the_hosts_error(
    make: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may open everything, so the refusal is played.
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=r"no permission to (read|write) '.*secret'"):
        make(str(tmp_path / "secret"))


# Sinks.


def test_file_sink_empties_the_file_and_writes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    sink = FileSink(str(path))
    sink.put(b"new")

    assert path.read_bytes() == b"new"
    sink.close()
    sink.close()
    sink.put(b"dropped")
    assert path.read_bytes() == b"new"


def test_tee_sink_reaches_every_sink_also_past_one_that_fails() -> None:
    class Broken:
        def put(self, data: bytes, /) -> None:
            raise OutputClosed("closed")

    first, last = BufferSink(), BufferSink()
    tee = TeeSink(first, Broken(), NullSink(), last)
    with pytest.raises(OutputClosed):
        tee.put(b"x")

    assert first.data == last.data == b"x"


def test_buffer_sink_keeps_everything() -> None:
    sink = BufferSink()
    sink.put(b"abc")
    sink.put(b"de")

    assert (sink.data, len(sink), sink.since(2)) == (b"abcde", 5, b"cde")


def test_stdout_sink_is_unbuffered(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    StdoutSink().put(b"hello\xff")

    assert capfdbinary.readouterr().out == b"hello\xff"


def test_stdout_sink_writes_all_of_more_than_a_pipe_holds() -> None:
    code = "from vmmsim.streams import StdoutSink; StdoutSink().put(bytes(range(256)) * 1000)"

    assert run_python(code).stdout == bytes(range(256)) * 1000


@posix
def test_stdout_sink_writes_all_to_a_non_blocking_reader_that_is_slow() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    code = "from vmmsim.streams import StdoutSink; StdoutSink().put(bytes(1000000))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=theirs)
    theirs.close()
    got = 0
    while data := ours.recv(1 << 16):
        got += len(data)
    ours.close()

    assert child.wait(time_limit(30)) == 0
    assert got == 1000000


CLOSED = """
import sys
from vmmsim.streams import OutputClosed, StdoutSink
sink = StdoutSink()
print("buffered by Python")
for _ in range(3):
    try:
        sink.put(b"x" * 100)
        print("put", file=sys.stderr)
    except OutputClosed as error:
        print("OutputClosed", error, file=sys.stderr)
"""


@posix
def test_a_closed_pipe_is_told_once_and_leaves_no_traceback(pipe: tuple[int, int]) -> None:
    out, into = pipe
    os.close(out)
    done = run_python(CLOSED, stdout=into, stderr=subprocess.PIPE)
    lines = done.stderr.decode().splitlines()

    assert done.returncode == 0, lines
    assert lines[0].startswith("OutputClosed standard output was closed by its reader")
    assert lines[1:] == ["put", "put"]


@posix
def test_no_stdout_at_all_is_told_once() -> None:
    done = run_python(CLOSED, stdout=None, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    lines = done.stderr.decode().splitlines()

    assert lines[0].startswith("OutputClosed there is no standard output")
    assert lines[1:] == ["put", "put"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_with_its_reason() -> None:
    with open("/dev/full", "wb") as full:
        code = CLOSED.replace('print("buffered by Python")', "")
        done = run_python(code, stdout=full, stderr=subprocess.PIPE)

    assert b"No space left" in done.stderr
    assert done.returncode == 0


@posix
def test_output_to_a_reader_that_stands_still_can_be_interrupted(pipe: tuple[int, int]) -> None:
    sink = FileSink(f"/dev/fd/{pipe[1]}") if os.path.exists("/dev/fd") else None
    if sink is None:
        pytest.skip("needs /dev/fd")
    tee = TeeSink(sink)
    threading.Timer(0.2, tee.interrupt).start()
    began = time.monotonic()
    tee.put(bytes(1 << 20))

    assert 0.1 < time.monotonic() - began < time_limit(5)
    sink.close()


# Ptys and specs.


@posix
def test_a_pty_carries_all_bytes_both_ways() -> None:
    port = PtyPort()
    peer = os.open(port.path, os.O_RDWR | os.O_NOCTTY)
    every = bytes(range(256))
    port.put(every)
    got = b""
    while len(got) < 256:
        got += os.read(peer, 4096)
    os.write(peer, every)
    back = bytes(port.wait() or 0 for _ in range(256))
    os.close(peer)

    assert got == every
    assert back == every
    assert port.get() is None
    assert not port.ended
    port.close()


@posix
def test_a_pty_that_nobody_reads_does_not_stop_the_guest() -> None:
    port = PtyPort()
    began = time.monotonic()
    for _ in range(100):
        port.put(bytes(1000))

    assert time.monotonic() - began < time_limit(5)
    assert 0 < port.dropped < 100_000
    port.close()
    port.close()
    port.put(b"after the end")


@posix
def test_sources_and_sinks_leave_no_descriptor_open(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/dev/fd"))

    (tmp_path / "in").write_bytes(b"x")
    before = count()
    for _ in range(20):
        port = open_port("pty")
        port.close()
        with_file = open_port(f"file:{tmp_path}/out", source=open_source(str(tmp_path / "in")))
        with_file.close()

    assert count() == before


def test_stdin_specs(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    source = open_source(str(tmp_path / "in"))

    assert drain(source) == b"abc"
    assert open_source("none").ended
    source.close()


def test_serial_specs(tmp_path: Path) -> None:
    port = open_port("none")
    assert port.source.ended
    assert isinstance(port.sink, NullSink)
    port.close()

    given = BytesSource(b"in")
    port = open_port(f"file:{tmp_path}/out", source=given)
    port.sink.put(b"out")
    port.close()
    assert port.source is given
    assert (tmp_path / "out").read_bytes() == b"out"

    assert isinstance(open_port("stdio", source=given).sink, StdoutSink)


@posix
def test_a_pty_port_tells_where_to_attach() -> None:
    port = open_port("pty")

    assert port.path is not None
    assert os.path.exists(port.path)
    port.close()


@pytest.mark.parametrize("spec", ["", "tcp:1234", "file", "STDIO"])
def test_serial_specs_that_do_not_exist_name_those_that_do(spec: str) -> None:
    with pytest.raises(UsageError, match="stdio, none, file:PATH or pty"):
        open_port(spec)


def test_tee_sink_passes_interrupt_and_rearm_to_the_sinks_that_know_them() -> None:
    class Waiting(BufferSink):
        said: tuple[str, ...] = ()

        def interrupt(self) -> None:
            self.said += ("interrupt",)

        def rearm(self) -> None:
            self.said += ("rearm",)

    waiting = Waiting()
    tee = TeeSink(NullSink(), waiting)
    tee.interrupt()
    tee.rearm()

    assert waiting.said == ("interrupt", "rearm")


def test_a_buffer_with_a_limit_keeps_the_end_and_counts_the_rest() -> None:
    buffer = BufferSink(limit=100)
    for number in range(1000):
        buffer.put(b"%03d" % number)

    assert len(buffer) == 3000
    assert buffer.dropped + len(buffer.data) == 3000
    assert 100 <= len(buffer.data) <= 203
    assert buffer.data.endswith(b"997998999")
    assert buffer.since(2994) == b"998999"
    assert buffer.since(0) == buffer.data


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs a signal of its own")
def test_a_wait_ends_when_a_signal_handler_outlasts_its_slice() -> None:
    """SimpleQueue.get(timeout) of CPython 3.11 would wait for ever here."""
    source = QueueSource()

    def slow(number: int, frame: object) -> None:
        time.sleep(0.1)  # longer than a slice of the wait
        source.interrupt()

    before = signal.signal(signal.SIGUSR1, slow)
    kick = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    rescue = threading.Timer(5, source.send, (b"late",))  # or a failure would hang
    kick.start()
    rescue.start()
    try:
        assert source.wait() is None
    finally:
        rescue.cancel()
        kick.join()
        signal.signal(signal.SIGUSR1, before)
