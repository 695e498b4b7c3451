"""Assemble the guests: write guests/<name>/<name>.hex from <name>.asm, where it changed.

    python guests/build.py [NAME...]

Needs the extra `vmmsim[asm]` (keystone).
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from vmmsim.asm import assemble

HERE = Path(__file__).resolve().parent


def hex_text(code: bytes) -> str:
    """32 bytes a line, so that a change of one instruction is a small diff."""
    return "".join(code[at : at + 32].hex(" ") + "\n" for at in range(0, len(code), 32))


def main(names: list[str]) -> None:
    for manifest in sorted(HERE.glob("*/guest.toml")):
        name = manifest.parent.name
        if names and name not in names:
            continue
        facts = tomllib.loads(manifest.read_text(encoding="utf-8"))
        source = (manifest.parent / f"{name}.asm").read_text(encoding="utf-8")
        code = assemble(source, facts["bits"], facts["load"])
        target = manifest.parent / f"{name}.hex"
        text = hex_text(code)
        if not target.exists() or target.read_text(encoding="ascii") != text:
            target.write_text(text, encoding="ascii")
            print(f"{name}: {len(code)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
