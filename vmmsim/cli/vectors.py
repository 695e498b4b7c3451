"""`vmmsim vectors`: vectors recorded from hardware, run on a backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import check_backend, json_option
from .output import out, say, table

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..diff.device_scripts import ScriptResult
    from ..diff.vector_table import PassTable

__all__ = ["command"]

_DIFFER = 122


@click.command("vectors")
@click.argument("path", metavar="DIR|FILE")
@click.option(
    "--backend", "-b", envvar="VMMSIM_BACKEND", default="auto", show_default=True, show_envvar=True,
    metavar="auto|kvm|unicorn", help="The CPU. auto takes KVM where it is usable, else Unicorn.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N vectors of each opcode.")
@click.option("--misses", is_flag=True, help="List only opcodes that missed some.")
@json_option
def command(path: str, backend: str, limit: int | None, misses: bool, as_json: bool) -> int:
    """Run recorded vectors: 80286.jsonl.gz and 8086.jsonl.gz on the CPU, *.json on the devices.

    A table has each opcode with how many came out as on the hardware, and the names of the
    reasons for those that did not. Exit code 122 if there is a miss that no reason explains.
    """
    from ..backends import open_backend
    from ..diff.device_scripts import is_script_file, read_scripts
    from ..diff.vectors import VectorError, vector_files

    check_backend(backend)
    sets = vector_files(path)
    root = Path(path)
    files = [root] if is_script_file(root) else sorted(root.rglob("*.json")) if root.is_dir() else []
    scripts = [read_scripts(file) for file in files]
    if not sets and not scripts:
        raise VectorError(
            f"there are no vectors in '{path}'",
            hint="files are named 80286.jsonl.gz, 8086.jsonl.gz, or *.json for register scripts",
        )
    opened, choice = open_backend(backend)
    try:
        say(f"backend {choice}")
        tables = [_run_set(opened, cpu, file, limit) for cpu, file in sets]
        results = [_run_script(name, steps) for found in scripts for name, steps in found.items()]
    finally:
        opened.close()
    if as_json:
        _print_json(tables, results)
    else:
        for each in tables:
            _show(each, only_misses=misses)
        if results:
            _show_scripts(results)
    clean = not any(t.findings for t in tables) and not any(r.findings for r in results)
    return 0 if clean else _DIFFER


def _run_set(backend: Backend, cpu: str, file: Path, limit: int | None) -> PassTable:
    from ..diff.vector_table import pass_table
    from ..diff.vectors import read_vectors

    with _progress(cpu) as told:
        return pass_table(backend, cpu, read_vectors(file), limit=limit, progress=told)


def _run_script(name: str, steps: Any) -> ScriptResult:
    from ..diff.device_scripts import run_script

    # No CPU runs: any backend will do, and Unicorn is there everywhere.
    return run_script(name, steps, backend="unicorn")


class _progress:
    """A line on stderr while it takes its time, where a person looks at it."""

    def __init__(self, cpu: str) -> None:
        self._cpu = cpu
        self._live: Any = None

    def __enter__(self) -> Callable[[int], None]:
        import sys

        if sys.stderr is None or not sys.stderr.isatty():
            return lambda count: None
        from rich.console import Console

        self._live = Console(stderr=True).status(f"{self._cpu} ...")
        self._live.start()
        return lambda count: self._live.update(f"{self._cpu}: {count} vectors")

    def __exit__(self, *ended: object) -> None:
        if self._live is not None:
            self._live.stop()


def _share(passed: int, total: int) -> str:
    return f"{100 * passed / total:.1f} %" if total else "-"


def _named(misses: dict[str, int]) -> str:
    return ", ".join(f"{reason or 'NOT EXPLAINED'} {count}" for reason, count in sorted(misses.items()))


def _show(found: PassTable, *, only_misses: bool) -> None:
    from ..diff.vector_misses import REASONS

    rows = [
        (row.opcode, f"{row.passed}/{row.total}", _share(row.passed, row.total), _named(row.misses))
        for row in found.rows.values()
        if row.misses or not only_misses
    ]
    all_misses = found.misses
    rows.append(("all", f"{found.passed}/{found.total}", _share(found.passed, found.total), ""))
    out(f"{found.cpu} on {found.provenance}")
    table(("opcode", "passed", "share", "misses by reason"), rows)
    titles = {reason.id: reason.title for reason in REASONS}
    if all_misses:
        out("")
        table(
            ("reason", "misses", "what it is"),
            [(r or "NOT EXPLAINED", str(n), titles.get(r, "a finding")) for r, n in all_misses.most_common()],
        )
    for miss in found.findings:
        out(f"  {miss}")
    out("")


def _show_scripts(results: list[ScriptResult]) -> None:
    rows = [
        (
            r.script,
            f"{r.reads - len(r.differ)}/{r.reads}",
            str(len(r.differ) - len(r.findings)),
            str(len(r.findings)),
        )
        for r in results
    ]
    out("register scripts")
    table(("script", "reads as recorded", "explained", "not explained"), rows)
    for result in results:
        told: set[str] = set()
        for read in result.differ:
            if not read.why or read.why not in told:
                out(f"  {read}")
                told.add(read.why)


def _print_json(tables: list[PassTable], results: list[ScriptResult]) -> None:
    import msgspec

    def named(misses: dict[str, int]) -> dict[str, int]:
        return {reason or "unexplained": count for reason, count in misses.items()}

    sets = [
        {
            "cpu": t.cpu,
            "provenance": t.provenance,
            "total": t.total,
            "passed": t.passed,
            "misses": named(t.misses),
            "opcodes": [
                {"opcode": r.opcode, "total": r.total, "passed": r.passed, "misses": named(r.misses)}
                for r in t.rows.values()
            ],
            "findings": [str(miss) for miss in t.findings],
        }
        for t in tables
    ]
    out(msgspec.json.encode({"sets": sets, "scripts": results}))
