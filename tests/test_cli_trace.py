"""`vmmsim trace`: what it writes, what it refuses, and that the guest runs as in `vmmsim run`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import SPIN, start, vmmsim

from vmmsim.testing.slow import time_limit
from vmmsim.trace import Jump, read_trace

ALPHABET = bytes(range(97, 123)) * 2


@pytest.fixture(params=[pytest.param("kvm", marks=pytest.mark.kvm),
                        pytest.param("unicorn", marks=pytest.mark.unicorn)])  # fmt: skip
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_run_becomes_a_file_in_each_format(backend: str, tmp_path: Path) -> None:
    for name, begins in (
        ("a.html", b"<!"),
        ("a.jsonl", b'{"type":"header"'),
        ("a.json", b'{"displayTimeUnit"'),
        ("a.vcd", b"$comment"),
    ):
        file = tmp_path / name
        result = vmmsim("trace", "hello64", "-b", backend, "-q", "-o", file)
        assert (result.returncode, result.stdout) == (0, vmmsim("run", "hello64", "-q").stdout)
        assert file.read_bytes().lower().startswith(begins.lower()), name
        assert b"43 exits of hello64" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json", "a.jsonl", "a.vcd"]


def test_format_wins_over_the_name(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    assert vmmsim("trace", "lwn", "-b", "unicorn", "-q", "-o", file, "--format", "perfetto").returncode == 0
    assert json.loads(file.read_bytes())["traceEvents"]


def test_the_cheat_is_in_the_trace(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "guess.jsonl"
    result = vmmsim(
        "trace", "guess", "--cheat", "--seed", "3", "-b", backend, "-q", "-o", file, stdin=ALPHABET + b"."
    )
    assert result.returncode == 0, result.stderr
    trace = read_trace(file)
    backs = [r for r in trace.records if isinstance(r, Jump) and r.what == "restore"]
    assert len(backs) == result.stderr.count(b"back in time to before it")
    assert backs
    page = tmp_path / "guess.html"
    assert vmmsim("trace", file, "-o", page).returncode == 0
    assert b"guess" in page.read_bytes()


def test_the_exit_code_is_the_guest_s(backend: str, tmp_path: Path) -> None:
    (tmp_path / "g.bin").write_bytes(bytes.fromhex("b007e6f4"))  # mov al, 7; out 0xf4, al
    result = vmmsim("trace", tmp_path / "g.bin", "-b", backend, "-q", "-o", tmp_path / "t.jsonl")
    assert result.returncode == 7
    assert vmmsim("trace", "fault", "-b", backend, "-q", "-o", tmp_path / "t.jsonl").returncode == 120
    end = read_trace(tmp_path / "t.jsonl").end
    assert end is not None
    assert end.kind == "shutdown"


def test_behind_the_limit_the_guest_runs_on(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    result = vmmsim("trace", "hello64", "-b", backend, "-q", "--limit", "10", "-o", file)
    assert result.stdout.startswith(b"Hello")
    assert b"not recorded (--limit)" in result.stderr
    trace = read_trace(file)
    assert trace.end is not None
    assert (len(trace.exits), trace.end.cut) == (10, True)


def test_looks_and_budgets(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    arguments = ["trace", "hello64", "-b", "unicorn", "-q", "-o", file]
    assert vmmsim(*arguments, "--looks", "3", "--max-exits", "20").returncode == 124
    trace = read_trace(file)
    assert len(trace.exits) == 20
    assert [r.looked for r in trace.exits].count(True) == 3


def test_a_kernel_s_own_clock_and_two_vcpus(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    arguments = ["trace", "smp-ping-pong", "-b", "unicorn", "-q", "-o", file, "--clock", "exits"]
    assert vmmsim(*arguments).returncode == 0
    header = read_trace(file).header
    assert (header.cpus, header.clock) == (2, "exits")


def test_saved_traces_become_other_files_and_two_a_page(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for file in (one, two):
        vmmsim("trace", "hello16", "-b", "unicorn", "-q", "-o", file)
    for name in ("x.json", "x.vcd", "x.html", "x.jsonl"):
        result = vmmsim("trace", one, "-o", tmp_path / name)
        assert result.returncode == 0, result.stderr
        assert result.stdout == b""
    assert (tmp_path / "x.jsonl").read_bytes() == one.read_bytes()
    assert vmmsim("trace", one, two, "-o", tmp_path / "both.html").returncode == 0
    assert vmmsim("run", "hello16", "-q", "-b", "unicorn", "--trace", tmp_path / "p.jsonl").returncode == 0
    assert vmmsim("trace", tmp_path / "p.jsonl", "-o", tmp_path / "p.html").returncode == 0


def test_diff_explore_writes_both_runs(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "d.html"
    result = vmmsim("diff", "hello16", "--a", backend, "--b", "unicorn-portable", "--explore", file)
    assert result.returncode == 0, result.stderr
    assert b"both runs, side by side" in result.stderr
    assert b"unicorn" in file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace", "guess"], b"nobody says where the trace goes"),
        (["trace", "-o", "x.html"], b"nothing to run"),
        (["trace", "guess", "-o", "x.txt"], b"does not say in which format"),
        (["trace", "guess", "-o", "none/x.html"], b"there is no directory 'none'"),
        (["trace", "guess", "-o", ".", "--format", "html"], b"it is a directory"),
        (["trace", "gues", "-o", "x.html"], b"did you mean 'guess'?"),
        (["trace", "guess", "-o", "x.html", "--looks", "some"], b"write auto, all, none"),
        (["trace", "guess", "-o", "x.html", "--limit", "0"], b"--limit"),
        (["trace", "guess", "-o", "x.xml", "--format", "xml"], b"--format"),
        (["trace", "lwn", "--cheat", "-o", "x.html"], b"nobody can cheat"),
        (["trace", "cut.jsonl", "-o", "x.html"], b"cut.jsonl, line 1: "),
        (["trace", "good.jsonl", "hello16", "-o", "x.html"], b"the trace 'hello16' cannot be read"),
        (["trace", "good.jsonl", "text", "-o", "x.html"], b"'text' is no trace"),
        (["trace", "text", "good.jsonl", "-o", "x.html"], b"'text' is no trace"),
        (["trace", "good.jsonl", "good.jsonl", "-o", "x.vcd"], b"two traces as vcd"),
        (["diff", "lwn", "--explore", "none/x.html"], b"there is no directory 'none'"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy_before_the_guest_runs(
    arguments: list[str], words: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = b'{"type":"header","format":2,"guest":"g","backend":"b","provenance":"p"}\n'
    (tmp_path / "good.jsonl").write_bytes(good)
    (tmp_path / "cut.jsonl").write_bytes(good[:30])
    (tmp_path / "text").write_text("text")
    result = vmmsim(*arguments)
    assert result.returncode in (125, 127)
    assert words in result.stderr
    assert b"hint: " in result.stderr
    assert b"Traceback" not in result.stderr
    assert result.stdout == b""
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_its_trace_whole(
    number: signal.Signals, backend: str, tmp_path: Path
) -> None:
    """out 0xe9, al; jmp $: the mark on stdout says that it runs."""
    (tmp_path / "g.bin").write_bytes(bytes.fromhex("b02ae6e9") + SPIN)
    file = tmp_path / "t.jsonl"
    child = start(
        "trace", tmp_path / "g.bin", "-b", backend, "-q", "-o", file,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.read(1) == b"*"
    time.sleep(0.2)
    assert not file.exists()
    child.send_signal(number)
    child.communicate(timeout=time_limit(30))
    assert child.returncode in (130, 143, -15)
    trace = read_trace(file)
    assert len(trace.exits) == 1
    assert trace.end is not None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_full_is_an_error_of_the_host() -> None:
    result = vmmsim("trace", "lwn", "-b", "unicorn", "-q", "-o", "/dev/full", "--format", "jsonl")
    assert result.returncode == 125
    assert b"'/dev/full' cannot be written" in result.stderr
    assert b"Traceback" not in result.stderr


def test_the_verb_does_not_load_what_it_does_not_need() -> None:
    code = (
        "import sys, vmmsim.cli.trace\n"
        "assert not {'vcd', 'unicorn', 'capstone', 'vmmsim.explore', 'vmmsim.trace'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=time_limit(30)).returncode == 0
