"""Machine code in the pages is what the assembly beside it says.

A line of an example is `"a0 00 10"  # 7c00: mov al, [0x1000]   and prose behind three blanks`, in
real mode, and 32-bit code from 1 MiB on; the address may be left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")

from vmmsim.asm import assemble

ROOT = Path(__file__).resolve().parent.parent
_LINE = re.compile(
    r'^(?:\.\.\.)?\s*"(?P<code>[0-9a-f ]+)"\s+# (?:(?P<at>[0-9a-f]+): )?(?P<asm>.*?)(?:   .*)?$', re.MULTILINE
)


def lines() -> list[tuple[str, str, int, str]]:
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for line in _LINE.finditer(page.read_text(encoding="utf-8")):
            found.append((page.stem, line["code"], int(line["at"] or "0", 16), line["asm"].strip()))
    return found


@pytest.mark.parametrize(("page", "code", "at", "asm"), lines())
def test_a_line_of_machine_code(page: str, code: str, at: int, asm: str) -> None:
    assert assemble(asm, 32 if at >= 1 << 20 else 16, at) == bytes.fromhex(code)


def test_there_are_such_lines() -> None:
    assert {"README", "1-create-run-halt", "2-mmio", "3-devices"} <= {page for page, *_ in lines()}


def test_the_lock_of_the_statement_is_the_checkers() -> None:
    folder = ROOT / "docs" / "exercises" / "3-the-lock"
    source = re.search(r"```nasm\n(.*?)```", (folder / "statement.md").read_text("utf-8"), re.DOTALL)
    assert source is not None
    text = (folder / "check.py").read_text("utf-8").partition("LOCK = ")[2].partition("\n)\n")[0]
    code = bytes.fromhex(" ".join(re.findall(r'^ +"([0-9a-f ]+)"', text, re.MULTILINE)))
    assert assemble("mov si, 0x7d00\n" + source[1], 16, 0x7C00) == code
