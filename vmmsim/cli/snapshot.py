"""`vmmsim snapshot`: look at snapshot files, check, compare, send and join them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .common import json_option
from .output import out, say, table

if TYPE_CHECKING:
    from ..snapshot.compare import Difference, FieldDifference, MemoryDifference
    from ..snapshot.container import SnapshotFile

__all__ = ["command"]

F = TypeVar("F", bound=Callable[..., Any])

_DIFFER = 122
_parents = click.option(
    "--parent", "parents", multiple=True, metavar="FILE", help="Where a parent is, if not beside its child."
)


def _output(function: F) -> F:
    return click.option("-o", "--output", required=True, metavar="FILE", help="The file to write.")(function)


@click.group("snapshot")
def command() -> None:
    """Snapshot files: what a machine was, in a file.

    \b
    vmmsim snapshot show game.vsnap
    vmmsim snapshot diff before.vsnap after.vsnap

    A file that cannot be loaded ends a verb with exit code 123.
    """


@command.command("show")
@click.argument("file")
@json_option
def show(file: str, as_json: bool) -> None:
    """What is in FILE: machine, CPUs, devices, memory. Its pages and parents are not looked at."""
    from ..snapshot.container import open_file
    from ..snapshot.encode import parse_json

    opened = open_file(file)
    manifest = parse_json(opened.manifest)
    if as_json:
        _json({"id": opened.id, "file_size": opened.header.file_size, **_sizes(opened), "manifest": manifest})
        return
    table(("what", "value"), _rows(opened, manifest))


@command.command("verify")
@click.argument("file")
@_parents
@json_option
def verify(file: str, parents: tuple[str, ...], as_json: bool) -> None:
    """Check every byte of FILE and of its parents, and that this vmmsim can load it."""
    from ..snapshot import container

    chain = container.verify(file, parents=parents)
    container.load(file, parents=parents, verify=False)
    if as_json:
        _json([{"file": f.path, "id": f.id, "file_size": f.header.file_size, **_sizes(f)} for f in chain])
        return
    rows = [(f.path, f.id[:16], str(f.header.file_size), "all hashes are right") for f in chain]
    table(("file", "id", "bytes", "result"), rows)


@command.command("diff")
@click.argument("a")
@click.argument("b")
@_parents
@click.option("--limit", default=1000, show_default=True, metavar="N", help="Show N stretches of memory.",
              type=click.IntRange(min=0))  # fmt: skip
@json_option
def diff(a: str, b: str, parents: tuple[str, ...], limit: int, as_json: bool) -> int:
    """What differs from A to B: registers, devices' fields, memory. Exit code 122 if anything does.

    Memory near the next instruction of either is shown as instructions too. Where the
    snapshots come from is not compared.
    """
    from ..snapshot.compare import compare
    from ..snapshot.container import load

    first, second = (load(path, parents=parents) for path in (a, b))
    found = compare(first, second, most=limit)
    if as_json:
        _json(_difference(found))
    else:
        _show(found)
    return 0 if found.same else _DIFFER


@command.command("pack")
@click.argument("file")
@_output
@click.option("--codec", type=click.Choice(["zlib", "zstd"]), help="[zstd where it is there, else zlib]")
def pack(file: str, output: str, codec: str | None) -> None:
    """Make a small file of FILE, to send. Parents are not packed with it: flatten first."""
    from ..snapshot.pack import pack

    say(f"{pack(file, output, codec=codec)} bytes in {output}")


@command.command("unpack")
@click.argument("file")
@_output
def unpack(file: str, output: str) -> None:
    """Make the snapshot file again that was packed in FILE, byte by byte."""
    from ..snapshot.pack import unpack

    say(f"snapshot {unpack(file, output)[:16]} in {output}")


@command.command("flatten")
@click.argument("file")
@_output
@_parents
def flatten(file: str, output: str, parents: tuple[str, ...]) -> None:
    """Join FILE and its parents into one file that needs none."""
    from ..snapshot.container import flatten

    say(f"snapshot {flatten(file, output, parents=parents)[:16]} in {output}")


def _json(value: Any) -> None:
    import msgspec

    out(msgspec.json.encode(value))


def _sizes(file: SnapshotFile) -> dict[str, int]:
    from ..snapshot.format import ZERO

    zero = sum(run.length for run in file.table if run.kind == ZERO)
    memory = sum(region.size for region in file.link.regions)
    return {"memory": memory, "stored": file.header.data_size, "zeroed": zero}


def _rows(file: SnapshotFile, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    from ..memory import format_size
    from ..snapshot.codec import printable

    config, clock, origin = (_object(manifest, k) for k in ("config", "clock", "provenance"))
    sizes = _sizes(file)
    rows = [
        ("id", file.id),
        ("format", f"1, written by {manifest.get('writer')}"),
        ("parent", f"{file.link.parent} ({file.link.parent_name})" if file.link.parent else "none"),
        ("taken on", ", ".join(str(origin[k]) for k in ("backend", "host") if origin.get(k)) or "not told"),
        ("machine", f"{config.get('model')}, {format_size(sizes['memory'])}"),
        ("clock", f"{clock.get('kind')}, at {clock.get('now_ns')} ns"),
        ("input taken", f"{manifest.get('input_position')} characters"),
        ("generation", str(manifest.get("generation"))),
        ("memory stored", format_size(sizes["stored"])),
    ]
    if origin.get("comment"):
        rows.insert(4, ("comment", str(origin["comment"])))
    rows = [(name, printable(text)) for name, text in rows]
    for region in file.link.regions:
        kind = "ROM" if region.readonly else "RAM"
        rows.append(
            ("region", f"{region.gpa:#x}..{region.end - 1:#x} {kind} {printable(region.name)}".rstrip())
        )
    return rows + _cpus(manifest) + _devices(manifest)


def _cpus(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    from ..snapshot.codec import decode
    from ..snapshot.values import CpuSnapshot

    rows = []
    for number, cpu in enumerate(decode(manifest.get("cpus"), tuple[CpuSnapshot, ...], "cpus")):
        insns = "" if cpu.insns is None else f", {cpu.insns} instructions"
        rows.append((f"cpu {number}", f"{cpu.run_state}, {cpu.state.mode}, CPL {cpu.state.cpl}{insns}"))
        rows += [("", line.strip()) for line in str(cpu.state).splitlines()]
    return rows


def _devices(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    from ..snapshot.codec import printable

    rows = []
    for name in _object(manifest, "devices"):
        fields = _object(manifest["devices"], name).items()
        text = ", ".join(f"{k}={_text(v)}" for k, v in fields) or "no state"
        rows.append((printable(name), printable(text)))
    return rows


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    """The object of that name; an empty one where the manifest, which is only shown, has another thing."""
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """A value in few characters: whole registers, the begin of a long list."""
    if isinstance(value, bytes):
        text = value.hex(" ") or "empty"
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 9:
        text = hex(value)
    else:
        text = "none" if value is None else str(value)
    return text if len(text) <= 72 else f"{text[:69]}..."


def _show(found: Difference) -> None:
    if found.same:
        say("no difference")
        return
    if found.fields:
        table(("what", "A", "B"), [(f.name, _text(f.a), _text(f.b)) for f in found.fields])
    for piece in found.memory:
        out(f"memory {piece.gpa:#x}, {piece.length} bytes")
        for side, data, code in (("A", piece.a, piece.code_a), ("B", piece.b, piece.code_b)):
            out(f"  {side} {data.hex(' ')}{' ...' if piece.length > len(data) else ''}")
            for line in code:
                out(f"      {line}")
    more = ", more than are shown" if found.more else ""
    say(f"{len(found.fields)} values and {found.pages} pages of memory differ{more}")


def _difference(found: Difference) -> dict[str, Any]:
    from ..snapshot.codec import encode

    def field(f: FieldDifference) -> dict[str, Any]:
        return {"name": f.name, "a": encode(f.a), "b": encode(f.b)}

    def memory(m: MemoryDifference) -> dict[str, Any]:
        return {
            "gpa": m.gpa, "length": m.length, "a": m.a.hex(), "b": m.b.hex(),
            "code_a": m.code_a, "code_b": m.code_b,
        }  # fmt: skip

    return {
        "same": found.same,
        "fields": [field(f) for f in found.fields],
        "pages": found.pages,
        "memory": [memory(m) for m in found.memory],
        "more": found.more,
    }
