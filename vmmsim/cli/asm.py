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
@click.option(
    "--with",
    "tool",
    type=click.Choice(["auto", "nasm", "as", "keystone"]),
    default="auto",
    show_default=True,
    help="The assembler: auto is NASM for a source with its directives, else keystone; as is GNU's.",
)
@click.option("--no-check", is_flag=True, help="Do not compare the code with the lines.")
def command(file: str, output: str | None, bits: str, address: str, tool: str, no_check: bool) -> None:
    """Assemble FILE, and check that its code is what its lines say.

    Intel syntax: keystone's (needs the extra: pip install 'vmmsim[asm]'), NASM's or GNU as's, where that is
    installed. Each makes other code than a line says at times, without an error; here that is one.

    \b
    vmmsim asm hello.asm -o hello.bin && vmmsim run ./hello.bin
    """
    from ..asm import assemble, choose_tool

    try:
        source = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ImageNotFound(f"there is no source file '{file}'", hint="check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ImageError(f"the source '{file}' cannot be read: {reason}", hint="check the file") from error
    used = choose_tool(source, tool)
    code = assemble(source, int(bits), parse_address(address, "--address"), tool=used, check=not no_check)
    say(f"assembled by {used.title}" + (", not checked" if no_check else ""))
    if output is None:
        for at in range(0, len(code), 16):
            out(code[at : at + 16].hex(" "))
        return
    try:
        Path(output).write_bytes(code)
    except OSError as error:
        raise UsageError(f"'{output}' cannot be written: {error.strerror}", hint="check the path") from error
    say(f"{len(code)} bytes in {output}")
