"""Clones: machines of their own over the same pages, one after the other, in threads and in processes."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_tools import start, vmmsim

from vmmsim import Machine
from vmmsim.errors import SnapshotError, UsageError
from vmmsim.loaders.flat import load_flat
from vmmsim.snapshot import clone
from vmmsim.snapshot.container import load, save, verify
from vmmsim.snapshot.executors import check, opened
from vmmsim.snapshot.values import Identity, Snapshot
from vmmsim.testing.slow import time_limit

#: inc byte [0x9000]; mov al, [0x9000]; add al, '0'; out 0xe9, al; in al, 0xf8; add al, '0'; out 0xe9, al; hlt
COUNT_AND_TELL = bytes.fromhex("fe060090 a00090 0430 e6e9 e4f8 0430 e6e9 f4")
#: mov al, [0x1010], a random letter; out 0xe9, al; loop 12 times (cx is 12); hlt
LETTERS = bytes.fromhex("b90c00 a01010 e6e9 e2f9 f4")
SPIN = bytes.fromhex("ebfe")
BACKENDS = [pytest.param(b, marks=getattr(pytest.mark, b)) for b in ("kvm", "unicorn")]


def made_executor() -> Executor:
    """For module:factory."""
    return ThreadPoolExecutor(2)


def snapshot_of(code: bytes, backend: str = "unicorn") -> Snapshot:
    with Machine(backend=backend, memory=1 << 20, seed=7) as machine:
        machine.load(load_flat(code, name="test", load_address=0x7C00, mode="real"))
        return machine.snapshot()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(snapshot_of(COUNT_AND_TELL), tmp_path / "snap")
    return tmp_path / "snap"


def output(machine: Machine) -> bytes:
    assert machine.run().kind == "halt"
    return machine.output.data


def test_what_a_clone_stores_nobody_else_sees(backend_name: str, file: Path) -> None:
    before = file.read_bytes()
    snapshot = load(file)
    with (
        snapshot.clone(backend=backend_name) as first,
        snapshot.clone(backend=backend_name) as second,
        Machine.from_snapshot(snapshot, backend=backend_name) as again,
    ):
        assert output(first) == b"11"
        first.memory.write(0x9000, b"\x77")
        assert second.memory.read(0x9000, 1) == b"\0"
        assert output(second) == b"11"
        assert output(again) == b"10"
    assert file.read_bytes() == before
    assert snapshot.memory.read(0x9000, 1) == b"\0"
    verify(file)


def test_clones_of_a_snapshot_in_memory_and_of_clones(backend_name: str) -> None:
    with Machine(backend=backend_name, memory=1 << 20) as machine:
        machine.load(load_flat(COUNT_AND_TELL * 2, name="test", load_address=0x7C00, mode="real"))
        with machine.snapshot().clone(backend=backend_name) as child:
            assert output(child) == b"11"
            with child.snapshot().clone(backend=backend_name) as grandchild:
                # Behind the first HLT, over the page that its parent has stored to.
                assert output(grandchild) == b"22"
        assert machine.memory.read(0x9000, 1) == b"\0"


def test_a_clones_random_source_is_its_own_unless_told_otherwise(backend_name: str) -> None:
    snapshot = snapshot_of(LETTERS, backend_name)

    def letters(identity: Identity | None) -> bytes:
        with snapshot.clone(backend=backend_name, identity=identity) as machine:
            return output(machine)

    with Machine.from_snapshot(snapshot, backend=backend_name) as machine:
        straight = output(machine)
    assert letters(Identity(same_random=True)) == straight
    assert letters(Identity(seed=5)) == letters(Identity(seed=5)) != straight
    assert len({letters(None) for _ in range(3)} | {straight}) == 4


def test_a_clones_generation_is_what_it_is_told() -> None:
    snapshot = snapshot_of(COUNT_AND_TELL)
    for identity, wanted in ((None, 1), (Identity(generation=5), 5), (Identity(generation=0), 0)):
        with snapshot.clone(backend="unicorn", identity=identity) as machine:
            assert machine.generation == machine.snapshot().generation == wanted
            assert output(machine) == b"1%d" % wanted
    with pytest.raises(UsageError):
        Identity(seed=1, same_random=True)
    with pytest.raises(UsageError):
        Identity(generation=-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["serial", "threads:2", "processes:2", "test_clones:made_executor"])
def test_each_executor_runs_them_all(file: Path, backend: str, where: str) -> None:
    work = clone.jobs(file, 8, backend=backend)
    with opened(where) as pool:
        results = sorted(clone.clones(work, pool), key=lambda r: r.number)

    assert [r.number for r in results] == list(range(1, 9))
    assert [r.generation for r in results] == list(range(1, 9))
    assert [r.output for r in results] == [b"1%d" % n for n in range(1, 9)]
    assert {(r.end, r.code, r.exits) for r in results} == {("halt", 0, 3)}
    assert all(0 < r.ready_seconds < r.seconds for r in results)
    assert {r.provenance.partition("/")[0].partition("-")[0] for r in results} == {backend}


def test_jobs_and_results_can_be_pickled(file: Path) -> None:
    (job,) = clone.jobs(file, 1, backend="unicorn", input=b"x", timeout=3.0)
    assert pickle.loads(pickle.dumps(job)) == job
    result = clone.run_clone(job)
    assert pickle.loads(pickle.dumps(result)) == result


def test_a_file_that_was_replaced_is_not_run(file: Path) -> None:
    work = clone.jobs(file, 2, backend="unicorn")
    assert clone.run_clone(next(work)).end == "halt"
    save(snapshot_of(LETTERS), file)
    result = clone.run_clone(next(work))
    assert (result.end, result.code) == ("error", 123)
    assert "the file" in result.detail or "is snapshot" in result.detail


def test_jobs_check_the_file_before_anything_runs(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(SnapshotError):
        clone.jobs(file, 2)
    with pytest.raises(UsageError):
        clone.jobs(file, 0)


def test_clones_are_called_off(tmp_path: Path) -> None:
    save(snapshot_of(SPIN), tmp_path / "spin")
    work = clone.jobs(tmp_path / "spin", 4, backend="unicorn", group="test")
    with opened("threads:2") as pool:
        futures = [pool.submit(clone.run_clone, job) for job in work]  # type: ignore[union-attr]
        time.sleep(0.3)
        clone.cancel("test")
        assert {future.result(20).end for future in futures} == {"cancelled"}


@pytest.mark.parametrize(
    "text", ["", "serial:1", "threads:0", "processes:x", "nothing", "no.such:thing", "os:"]
)
def test_executors_that_are_none(text: str) -> None:
    with pytest.raises(UsageError), opened(check(text)):
        pass


# The command line.


def test_the_table_says_how_they_ended(file: Path) -> None:
    result = vmmsim("clone", file, "-n", "5", "-b", "unicorn")

    head, row = result.stdout.decode().splitlines()
    assert result.returncode == 0
    assert head.split("  ")[0] == "ended with"
    assert row.split()[:3] == ["halt", "0", "5"]
    assert row.split()[-1] == "5"  # outputs, since each tells its generation
    assert b"5 of 5 clones in" in result.stderr


def test_json_has_every_clone(file: Path) -> None:
    result = vmmsim("clone", file, "-n", "3", "-b", "unicorn", "--jobs", "2", "--json")

    report = json.loads(result.stdout)
    assert (report["count"], report["executor"]) == (3, "processes:2")
    assert [(c["number"], c["generation"], c["end"]) for c in report["clones"]] == [
        (1, 1, "halt"), (2, 2, "halt"), (3, 3, "halt"),
    ]  # fmt: skip
    assert len({c["process"] for c in report["clones"]}) <= 2


def test_each_clone_reads_the_same_and_the_worst_code_is_the_commands(tmp_path: Path) -> None:
    # again: mov al, [0x1000]; out 0xe9, al; cmp al, 4; jne again; mov al, 3; out 0xf4, al
    save(snapshot_of(bytes.fromhex("a00010 e6e9 3c04 75f7 b003 e6f4")), tmp_path / "read")
    result = vmmsim(
        "clone", tmp_path / "read", "-n", "2", "-b", "unicorn", "--stdin", "-", "--json", stdin=b"hi"
    )

    assert result.returncode == 3
    assert {c["output"] for c in json.loads(result.stdout)["clones"]} == {"aGkE"}


def test_a_timeout_ends_each_clone(tmp_path: Path) -> None:
    save(snapshot_of(SPIN), tmp_path / "spin")
    result = vmmsim("clone", tmp_path / "spin", "-n", "2", "-b", "unicorn", "--timeout", "100ms")
    assert result.returncode == 124
    assert b"budget" in result.stdout


@pytest.mark.parametrize("where", ["serial", "threads:2", "processes:2"])
def test_ctrl_c_ends_it_cleanly(tmp_path: Path, where: str) -> None:
    save(snapshot_of(SPIN), tmp_path / "spin")
    child = start(
        "clone", tmp_path / "spin", "-n", "6", "-b", "unicorn", "--executor", where,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(1.2)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=time_limit(20))

    assert child.returncode == 130
    assert b"stopped by Ctrl-C: 0 of 6 clones had ended" in said
    assert b"Traceback" not in said


def test_what_cannot_be_asked_for(file: Path) -> None:
    for options in (
        ["--jobs", "2", "--executor", "serial"],
        ["--executor", "x"],
        ["--stdin", "/nowhere/file"],
    ):
        result = vmmsim("clone", file, *options)
        assert result.returncode == 125
        assert b"error: " in result.stderr
        assert b"Traceback" not in result.stderr
    assert vmmsim("clone", file.parent / "none").returncode == 123
