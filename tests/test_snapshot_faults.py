"""The disk is full, the host fails, the process is killed: at each step of writing a snapshot.

What is there afterwards is the old file, or none, or the new one whole.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_tools import environment
from snapshot_samples import GOLDEN, child, sample

from vmmsim.errors import HostError, SnapshotError, VmmsimError
from vmmsim.snapshot.container import flatten, load, save
from vmmsim.snapshot.pack import pack, unpack
from vmmsim.testing.slow import time_limit

CALLS = ("open", "write", "lseek", "fsync", "close", "replace")
TESTS = Path(__file__).parent


def _save(target: Path) -> None:
    save(sample(), target)


def _save_child(target: Path) -> None:
    parent = load(GOLDEN / "v1.vsnap")
    save(child(parent), target, parent=parent)


def _flatten(target: Path) -> None:
    flatten(GOLDEN / "v1-child.vsnap", target)


def _pack(target: Path) -> None:
    pack(GOLDEN / "v1.vsnap", target, codec="zlib")


def _unpack(target: Path) -> None:
    unpack(target.parent.parent / "v1.pack", target)


OPERATIONS: dict[str, Callable[[Path], None]] = {
    "save": _save, "save-child": _save_child, "flatten": _flatten, "pack": _pack, "unpack": _unpack,
}  # fmt: skip


class Faults:
    """The n-th of the calls of `os` that write something fails, or does what `instead` does.

    Descriptors of files that are read are left alone.
    """

    def __init__(self, step: int, instead: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]) -> None:
        self.step = step
        self.count = 0
        self.instead = instead
        self._written: set[int] = set()
        self._real = {name: getattr(os, name) for name in CALLS}

    def wrap(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_WRONLY and not os.path.isdir(arguments[0]):
                return real(*arguments, **options)
            if name == "close" and arguments[0] not in self._written:
                return real(*arguments, **options)
            self.count += 1
            if self.count - 1 == self.step:
                return self.instead(name, real, arguments)
            result = real(*arguments, **options)
            if name == "open":
                self._written.add(result)
            elif name == "close":
                self._written.remove(arguments[0])
            return result

        return call

    def install(self, patch: Callable[[Any, str, Any], None]) -> None:
        for name in CALLS:
            patch(os, name, self.wrap(name))


def no_room(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if name == "close":  # it is closed all the same: close(2)
        real(*arguments)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A write of half the bytes, behind which nothing more goes."""
    if name == "write":
        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
    return no_room(name, real, arguments)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pack(GOLDEN / "v1.vsnap", tmp_path / "v1.pack", codec="zlib")
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def whole(operation: str, directory: Path) -> bytes:
    """What the operation writes when all goes well."""
    OPERATIONS[operation](directory / "good")
    data = (directory / "good").read_bytes()
    (directory / "good").unlink()
    return data


@pytest.mark.parametrize("fault", [no_room, half])
@pytest.mark.parametrize("old", [b"", b"something else"], ids=["new", "over-old"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk_at_each_step(
    directory: Path, operation: str, old: bytes, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = whole(operation, directory)
    target = directory / "target"
    steps = 0
    while True:
        target.unlink(missing_ok=True)
        if old:
            target.write_bytes(old)
        faults = Faults(steps, fault)
        error: VmmsimError | None = None
        with monkeypatch.context() as patched:
            faults.install(patched.setattr)
            try:
                OPERATIONS[operation](target)
            except VmmsimError as raised:
                error = raised
        there = {path.name: path.read_bytes() for path in directory.iterdir()}
        if faults.count <= steps:
            break
        assert isinstance(error, HostError), (steps, error)
        assert error.hint
        if "may not survive" in error.message:
            assert there == {"target": good}
        else:
            assert "No space left" in error.message
            assert there == ({"target": old} if old else {})
        steps += 1
    assert error is None
    assert there == {"target": good}
    assert steps >= 8


def test_writes_that_take_a_few_bytes_at_a_time(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:777]))
    save(sample(), directory / "a")
    assert load(directory / "a") == sample()


def test_an_exception_in_the_midst_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(sample(), directory / "a")
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("target", ["nowhere/a", "a\0b", "."])
def test_where_nothing_can_be_written(directory: Path, target: str) -> None:
    with pytest.raises(HostError, match="cannot be written"):
        save(sample(), directory / target)
    assert list(directory.iterdir()) == []


KILLER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_snapshot_faults as t
operation, directory = sys.argv[2], Path(sys.argv[3])
t.OPERATIONS[operation](directory / "warm")
(directory / "warm").unlink()

def kill(name, real, arguments):
    if when == "after":
        real(*arguments)
    elif when == "half" and name == "write":
        real(arguments[0], arguments[1][:len(arguments[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

step = 0
while True:
    killed = 0
    for when in ("before", "half", "after"):
        place = directory / f"{step}-{when}"
        place.mkdir()
        (place / "target").write_bytes(b"old")
        child = os.fork()
        if not child:
            t.Faults(step, kill).install(setattr)
            t.OPERATIONS[operation](place / "target")
            os._exit(0)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if not killed:
        break
    step += 1
print(step)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this host has no fork")
@pytest.mark.parametrize("operation", ["save", "save-child", "unpack"])
def test_kill_9_at_each_step_leaves_the_old_file_or_the_new_one(directory: Path, operation: str) -> None:
    good = whole(operation, directory.parent / "files")
    base = directory / "kill"
    base.mkdir()
    (directory / "v1.pack").write_bytes((directory.parent / "v1.pack").read_bytes())
    (base / "v1.pack").write_bytes((directory.parent / "v1.pack").read_bytes())

    result = subprocess.run(
        [sys.executable, "-c", KILLER, str(TESTS), operation, str(base)],
        capture_output=True, text=True, timeout=time_limit(100), env=environment(), check=False,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    steps = int(result.stdout)
    assert steps >= 8
    became_new = 0
    for step in range(steps):
        for when in ("before", "half", "after"):
            place = base / f"{step}-{when}"
            data = (place / "target").read_bytes()
            assert data in (b"old", good)
            became_new += data == good
            left = [path for path in place.iterdir() if path.name != "target"]
            assert len(left) <= 1
            for path in left:
                assert path.name.startswith(".target.")
                # The header comes last: what is not whole does not load.
                if path.read_bytes() != good:
                    with pytest.raises(SnapshotError):
                        load(path, parents=[GOLDEN / "v1.vsnap"])
    assert 0 < became_new < 3 * steps


def test_two_writers_of_one_name_do_not_mix(directory: Path) -> None:
    snapshots = [msgspec.structs.replace(sample(), generation=number) for number in range(4)]

    def write(snapshot: Any) -> None:
        for _ in range(5):
            save(snapshot, directory / "a")

    threads = [threading.Thread(target=write, args=(snapshot,)) for snapshot in snapshots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert load(directory / "a") in snapshots
    assert [path.name for path in directory.iterdir()] == ["a"]
