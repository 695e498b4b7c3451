"""The exercises: each checker takes the solution, and says what is wrong with other answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from vmmsim.testing.slow import time_limit

EXERCISES = Path(__file__).resolve().parent.parent / "docs" / "exercises"
FOLDERS = sorted(path.parent for path in EXERCISES.glob("*/check.py"))

pytestmark = pytest.mark.timeout(110)


def check(folder: Path, answer: Path | None = None, backend: str = "all") -> subprocess.CompletedProcess[str]:
    """Run the checker as a student does: in a process of its own, with the answer that was asked for."""
    options = [] if answer is None else ["--answer", str(answer)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            *options,
            f"--vmm-backend={backend}",
            folder,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=time_limit(100),
        env=kept,
        check=False,
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_solution_passes(folder: Path, backend_name: str) -> None:
    done = check(folder, folder / "solution.py", backend_name)
    assert done.returncode == 0, done.stdout
    ran = re.search(rf"on {backend_name}: (\d+)", done.stdout)
    assert ran is not None, done.stdout
    assert int(ran[1]) > 0, done.stdout


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_starter_says_what_to_write(folder: Path) -> None:
    done = check(folder)
    assert done.returncode == 1, done.stdout
    assert f"not written yet: {'Mailbox' if 'mailbox' in folder.name else ''}" in done.stdout
    assert f"of exercise {folder.name[0]}" in done.stdout
    assert "Traceback" not in done.stdout
    assert "1 failed" in done.stdout, "one thing at a time"


class Wrong(NamedTuple):
    """The solution with `old` replaced by `new`, and what the checker must say."""

    exercise: str
    name: str
    old: str
    new: str
    said: str


#: The last two cases of exercise 1's loop.
ENDS = """\
            case Halt():
                return bytes(output)
            case _:
                raise RuntimeError(f"the guest has failed: {exit.kvm}")"""

WRONG = [
    Wrong(
        "1-be-the-vmm",
        "never_ends",
        ENDS,
        "            case _:\n                pass",
        "does the loop end there?",
    ),
    Wrong(
        "1-be-the-vmm",
        "leaves_a_read",
        "exit.reply((1 << 8 * exit.size) - 1)",
        "pass",
        "needs a reply(), also at addresses where nobody is",
    ),
    Wrong("1-be-the-vmm", "zeros", "exit.reply((1 << 8 * exit.size) - 1)", "exit.reply(0)", "0xffff, not 0"),
    Wrong("1-be-the-vmm", "one_byte", "exit.reply((1 << 8 * exit.size) - 1)", "exit.reply(0xFF)", "not 0xff"),
    Wrong(
        "1-be-the-vmm",
        "prints_all",
        "MmioWrite(address=0x1020) | PortWrite(address=0xE9)",
        "MmioWrite() | PortWrite()",
        "nobody is there",
    ),
    Wrong(
        "1-be-the-vmm",
        "ends_at_all",
        'raise RuntimeError(f"the guest has failed: {exit.kvm}")',
        "return bytes(output)",
        "Raise RuntimeError for what the table does not have",
    ),
    Wrong(
        "2-mailbox",
        "last_in_first_out",
        "pop(0)",
        "pop()",
        "at read 1, a read of DATA should answer 0x11; yours answers 0x33",
    ),
    Wrong(
        "2-mailbox",
        "empty_raises",
        "self._queue.pop(0) if self._queue else 0",
        "self._queue.pop(0)",
        "A device answers whatever a guest does",
    ),
    Wrong("2-mailbox", "note_stays", "        self._dropped = False\n", "", "at the second read of STATUS"),
    Wrong(
        "2-mailbox",
        "note_not_in_the_state",
        "bytes(self._queue), self._dropped",
        "bytes(self._queue)",
        "restored from a state with three bytes in and one dropped, a read of STATUS should answer 0x81",
    ),
    Wrong(
        "2-mailbox",
        "state_is_the_device",
        "MailboxState(bytes(self._queue), self._dropped)",
        "MailboxState(self._queue, self._dropped)",
        "restored from a state that was taken before the device went on, a read of DATA should answer 0x01",
    ),
    Wrong(
        "3-the-lock",
        "does_not_go_back",
        "            machine.restore(before, rewind=False)\n",
        "",
        "After a wrong letter the lock halts for ever. Go back to before it",
    ),
    Wrong(
        "3-the-lock",
        "types_again",
        ", rewind=False",
        "",
        "with rewind=False (else the wrong letter is typed again)",
    ),
    Wrong(
        "3-the-lock",
        "not_open",
        '    machine.serial.expect(b"!")\n',
        "    machine.restore(before, rewind=False)\n",
        "but the lock is not open",
    ),
    Wrong("3-the-lock", "another_pin", "return pin", "return pin[::-1]", "unlock() returned 'efac'"),
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_wrong_answers_are_told_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    """A teacher's run: all answers of a folder, a line for each."""
    solution = (folder / "solution.py").read_text(encoding="utf-8")
    answers = [wrong for wrong in WRONG if wrong.exercise == folder.name]
    assert len(answers) >= 4
    for wrong in answers:
        assert solution.count(wrong.old) == 1, wrong.name
        changed = solution.replace(wrong.old, wrong.new)
        (tmp_path / f"{wrong.name}.py").write_text(changed, encoding="utf-8")
    (tmp_path / "right.py").write_text(solution, encoding="utf-8")
    done = check(folder, tmp_path)
    assert done.returncode == 1, done.stdout
    lines = dict(re.findall(r"^(\w+)\.py: (\d+ of \d+.*)$", done.stdout, re.MULTILINE))
    assert re.fullmatch(r"(\d+) of \1", lines.pop("right")), done.stdout
    assert sorted(lines) == sorted(wrong.name for wrong in answers), done.stdout
    for wrong in answers:
        assert wrong.said in lines[wrong.name], done.stdout


def test_each_has_a_page_without_its_solution() -> None:
    assert len(FOLDERS) == 3
    for folder in FOLDERS:
        page = (folder / "statement.md").read_text(encoding="utf-8")
        assert f"python -m pytest docs/exercises/{folder.name}\n" in page
        body = (folder / "solution.py").read_text(encoding="utf-8").partition('"""\n')[2]
        code = {line.strip() for line in body.splitlines() if len(line.strip()) > 25}
        starter = (folder / "starter.py").read_text(encoding="utf-8")
        assert [line for line in code if line in page and line not in starter] == []


def test_a_file_that_is_not_there_or_no_python(tmp_path: Path) -> None:
    done = check(FOLDERS[0], tmp_path / "nothing.py")
    assert f"there is no file {tmp_path / 'nothing.py'}" in done.stdout
    broken = tmp_path / "broken.py"
    broken.write_text("def drive(vcpu, keys):\n    return (\n", encoding="utf-8")
    done = check(FOLDERS[0], broken)
    assert "broken.py, line 2: '(' was never closed" in done.stdout
