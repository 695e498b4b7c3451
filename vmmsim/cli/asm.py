"""`vmmsim asm`: from a source file to a flat binary."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ImageError, ImageNotFound, UsageError
from .common import parse_address
from .output import out, say

__all__ = ["command"]


@click.command("asm")
@click.argument("file", metavar="FILE")
@click.option("-o", "--output", metavar="FILE", help="Where the bytes go. [hexadecimal text on stdout]")
@click.option("--bits", type=click.Choice(["16", "32", "64"]), default="16", show_default=True)
@click.option("--address", default="0x7c00", show_default=True, metavar="ADDR", help="Where it will lie.")
def command(file: str, output: str | None, bits: str, address: str) -> None:
    """Assemble FILE (Intel syntax, keystone). Needs the extra: pip install 'vmmsim[asm]'.

    \b
    vmmsim asm hello.asm -o hello.bin && vmmsim run ./hello.bin
    """
    from ..asm import assemble

    try:
        source = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ImageNotFound(f"there is no source file '{file}'", hint="check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ImageError(f"the source '{file}' cannot be read: {reason}", hint="check the file") from error
    code = assemble(source, int(bits), parse_address(address, "--address"))
    if output is None:
        for at in range(0, len(code), 16):
            out(code[at : at + 16].hex(" "))
        return
    try:
        Path(output).write_bytes(code)
    except OSError as error:
        raise UsageError(f"'{output}' cannot be written: {error.strerror}", hint="check the path") from error
    say(f"{len(code)} bytes in {output}")
