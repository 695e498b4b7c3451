"""The debugger's socket: who comes, what they send, and when they leave."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_tools import start, vmmsim
from debug_tools import PATIENCE, Client, Served, served

from vmmsim import Machine
from vmmsim.debug.server import GdbServer
from vmmsim.errors import UsageError
from vmmsim.exits import Cancelled, GuestExit
from vmmsim.loaders.flat import load_flat

#: again: inc dword ptr [0x9000]; jmp again. In 32-bit code.
SPIN = bytes.fromhex("ff0500900000 ebf8")

unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="uses Unix sockets")


def spinning(backend: str) -> Machine:
    machine = Machine(backend=backend, memory=1 << 20)
    machine.load(load_flat(SPIN, name="spin", load_address=0x8000, mode="p32"))
    return machine


def count(running: Served) -> int:
    region = running.machine.memory.region_at(0x9000)
    assert region is not None
    return int.from_bytes(region.buffer[0x9000 - region.gpa : 0x9004 - region.gpa], "little")


def await_progress(running: Served, than: int) -> None:
    """Until the guest has counted beyond `than`."""
    deadline = time.monotonic() + PATIENCE
    while count(running) <= than:
        assert time.monotonic() < deadline, "the guest does not run"
        time.sleep(0.005)


def test_who_cancels_the_machine_ends_it(backend_name: str) -> None:
    with served(spinning(backend_name)) as running:
        client = running.client().start()
        assert client.ask(b"?") == b"T05thread:1;"
        client.send(b"vCont;c")
        await_progress(running, count(running))
        running.machine.cancel()  # as Ctrl-C does
        assert client.reply() == b"X02"
        assert running.join() == Cancelled()


def test_interrupts_come_one_by_one(backend_name: str) -> None:
    with served(spinning(backend_name), wait=True) as running:
        client = running.client().start()
        counts = [0]
        for _ in range(3):
            client.send(b"vCont;c")
            await_progress(running, counts[-1])
            client.socket.sendall(b"\x03")
            assert client.reply() == b"T02thread:1;"
            counts.append(int.from_bytes(bytes.fromhex(client.ask(b"m9000,4").decode()), "little"))
        assert counts == sorted(set(counts))
        # An interrupt in the same breath as the order to run is not lost.
        client.socket.sendall(b"$vCont;c#a8\x03")
        assert client.reply() == b"T02thread:1;"


def switches(server: GdbServer) -> tuple[int, int]:
    """How often the thread at the socket has woken and slept, and its CPU time in ticks."""
    task = Path(f"/proc/self/task/{server._thread.native_id}")
    lines = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return int(lines["voluntary_ctxt_switches"]), int(fields[11]) + int(fields[12])


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_debugger_that_asks_nothing_is_one_sleeping_thread(backend_name: str) -> None:
    with served(spinning(backend_name), wait=True) as running:
        client = running.client().start()
        client.send(b"vCont;c")
        await_progress(running, 1000)
        deadline, before = time.monotonic() + PATIENCE, (-1, -1)
        while before != (before := switches(running.server)):  # it has read the order, and sleeps again
            assert time.monotonic() < deadline
            time.sleep(0.1)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            await_progress(running, count(running))
        assert switches(running.server) == before
        client.socket.sendall(b"\x03")
        assert client.reply() == b"T02thread:1;"


def calls_of_a_run(backend: str, exits: int, attached: bool) -> int:
    """Python functions called by a guest that makes so many exits, and by the debugger's thread."""
    made = [0]
    # mov ecx, exits; again: out 0x80, al; dec ecx; jnz again; hlt
    code = b"\xb9" + exits.to_bytes(4, "little") + bytes.fromhex("e680 49 75fb f4")
    machine = Machine(backend=backend, memory=1 << 20)
    machine.load(load_flat(code, name="out", load_address=0x8000, mode="p32"))

    def count_calls(_frame: object, event: str, _argument: object) -> None:
        made[0] += event == "call"

    threading.setprofile(count_calls)  # for threads that start from now on
    try:
        with served(machine, wait=True) if attached else machine as running:
            if isinstance(running, Served):
                client = running.client().start()
                for end in (b"T", b"W"):  # stopped at its end, and gone
                    client.send(b"vCont;c")
                    assert client.reply()[:1] == end
                running.join()
            else:
                thread = threading.Thread(target=machine.run)
                thread.start()
                thread.join(PATIENCE)
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    return made[0]


def test_an_exit_costs_the_same_with_a_debugger(backend_name: str) -> None:
    few, many = 500, 3000
    costs = []
    for attached in (False, True):
        calls_of_a_run(backend_name, few, attached)  # what is imported and remembered at first
        runs = [calls_of_a_run(backend_name, exits, attached) for exits in (few, many)]
        costs.append((runs[1] - runs[0]) / (many - few))
    assert costs[1] == pytest.approx(costs[0], rel=0.02)


def test_detach_and_attach_again(backend_name: str) -> None:
    with served(spinning(backend_name), wait=True) as running:
        client = running.client().start()
        assert client.ask(b"Z0,8000,1") == b"OK"
        assert client.ask(b"D") == b"OK"
        assert client.reply() == b""
        await_progress(running, count(running))  # it is not stopped by what was set
        again = running.client().start()
        assert again.ask(b"?") == b"T05thread:1;"
        assert again.ask(b"m9000,4") > b"00000000"
        again.close()  # without a word
        third = running.client().start()
        assert third.ask(b"?") == b"T05thread:1;"
        third.send(b"k")
        assert running.join() == Cancelled()


def test_a_connection_that_is_lost_while_the_guest_runs(backend_name: str) -> None:
    with served(spinning(backend_name), wait=True) as running:
        client = running.client().start()
        client.send(b"vCont;c")
        await_progress(running, 0)
        client.close()
        await_progress(running, count(running))
        assert running.client().start().ask(b"?") == b"T05thread:1;"


def test_the_machines_end_is_the_debuggers_end(backend_name: str) -> None:
    with served(Machine.for_guest("hello64", backend=backend_name), wait=True) as running:
        client = running.client().start()
        assert client.ask(b"c") == b"T0fthread:1;"
        assert client.ask(b"c") == b"W00"
        assert running.join() == GuestExit(0)
        assert running.machine.output.data == b"Hello from long mode\n"


def test_who_leaves_behind_the_end_ends_it(backend_name: str) -> None:
    with served(Machine.for_guest("hello64", backend=backend_name), wait=True) as running:
        client = running.client().start()
        assert client.ask(b"c") == b"T0fthread:1;"
        assert client.ask(b"D") == b"OK"
        assert running.join() == GuestExit(0)


@unix_sockets
@pytest.mark.unicorn
def test_a_second_debugger_is_told_so(tmp_path: Path) -> None:
    with served(spinning("unicorn"), f"unix:{tmp_path / 'gdb'}", wait=True) as running:
        client = running.client().start()
        second = running.client()
        assert second.reply() == b"E.another debugger is attached"
        assert second.reply() == b""
        assert client.ask(b"qC") == b"QC1"


@pytest.mark.unicorn
@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 100_000, b"$" * 100_000, b"$" + b"A" * 500_000, b"\x03" * 100_000, b"GET / HTTP/1.1\r\n\r\n",
     b"$vCont;c#00$g#99", b"$qRcmd,zz#%02x" % (sum(b"qRcmd,zz") & 255) * 1000],
)  # fmt: skip
def test_garbage_does_no_harm(garbage: bytes) -> None:
    with served(spinning("unicorn"), wait=True) as running:
        client = running.client().start()
        client.socket.sendall(garbage)
        client.socket.sendall(b"#00")
        client.send(b"qC")
        replies = [client.reply() for _ in range(1 + garbage.count(b"qRcmd") + (garbage[:2] == b"$$"))]
        assert replies[-1] == b"QC1"


@pytest.mark.unicorn
def test_garbage_while_the_guest_runs_does_not_stop_it() -> None:
    with served(spinning("unicorn"), wait=True) as running:
        client = running.client().start()
        client.send(b"vCont;c")
        client.socket.sendall(b"rubbish $g#67 $m0,4#00" * 2000)
        await_progress(running, count(running))
        client.socket.sendall(b"\x03")
        assert client.reply() == b"T02thread:1;"


def flood(client: Client) -> None:
    """Ask, and read no answer."""
    for _ in range(100_000):
        client.socket.sendall(b"$qXfer:features:read:target.xml:0,3fff#00$?#3f" * 10)
        client.send(b"qXfer:features:read:target.xml:0,3fff")


@pytest.mark.unicorn
def test_a_debugger_that_reads_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmmsim.debug.server._SEND_SECONDS", 0.3)
    with served(spinning("unicorn"), wait=True) as running:
        client = running.client().start()
        client.socket.settimeout(0.5)
        with pytest.raises(OSError):
            flood(client)
        client.close()
        for _ in range(100):  # until what it has sent is thrown away
            again = running.client()
            again.send(b"qC")
            if again.reply() == b"QC1":
                break
            time.sleep(0.05)
        else:
            pytest.fail("nobody can attach any more")


@unix_sockets
@pytest.mark.unicorn
def test_ctrl_c_in_vmmsims_own_terminal(tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    process = start("run", "hello64", "-q", "-b", "unicorn", "-S", "--gdb", f"unix:{path}")
    try:
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"$qC#b4")
            client.recv(100)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


def test_addresses_that_are_none() -> None:
    for address in ("", "tcp:", "tcp:127.0.0.1", "tcp:127.0.0.1:x", "tcp:127.0.0.1:70000", "unix:", "pipe:x"):
        with pytest.raises(UsageError):
            GdbServer(address)


def test_other_hosts_are_let_in_only_when_told() -> None:
    with pytest.raises(UsageError, match="could read and change the guest"):
        GdbServer("tcp:0.0.0.0:0")
    with GdbServer("tcp:0.0.0.0:0", remote=True) as server:
        assert server.address.startswith("tcp:0.0.0.0:")


def test_a_port_in_use_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match="another process has it"):
            GdbServer(f"tcp:127.0.0.1:{port}")
        ran = vmmsim("run", "loop", "-b", "unicorn", "--gdb", f"tcp:127.0.0.1:{port}")
        assert ran.returncode == 125
        assert "another process has it" in text(ran.stderr)


def text(stderr: str | bytes) -> str:
    return stderr.decode() if isinstance(stderr, bytes) else stderr


@unix_sockets
def test_a_unix_socket_that_was_left_over_is_taken_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with GdbServer(f"unix:{path}"):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(UsageError, match="in use"):
            GdbServer(f"unix:{path}")
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(UsageError, match="in use"):
        GdbServer(f"unix:{path}")
    assert path.read_text() == "a file"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("-S",), "-S without a debugger"),
        (("--reverse",), "--reverse without a debugger"),
        (("-s", "--gdb", "tcp:127.0.0.1:0"), "leave one away"),
        (("-s", "--max-exits", "5"), "a limit on the run"),
        (("--gdb", "tcp:0.0.0.0:0"), "--gdb-remote"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], word: str) -> None:
    ran = vmmsim("run", "loop", "-b", "unicorn", *options)
    assert ran.returncode == 125
    assert word in text(ran.stderr)
