"""`vmmsim run`: run a guest to its end; its serial port is the terminal."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from ..errors import DeviceError
from ..exits import Exit
from .common import Choices, budgets, guest_options, json_option, open_machine, resolve
from .debug import Debugging
from .output import say
from .record import recording_source, start_recording
from .session import (
    Stop,
    cheating,
    check_cheat,
    judge,
    open_serial,
    print_json,
    run_to_end,
    terminal,
    tracing,
)
from .taker import Taker

__all__ = ["command"]


@click.command("run")
@guest_options
@click.option(
    "--serial",
    default="stdio",
    show_default=True,
    metavar="stdio|none|file:PATH|pty",
    help="Where the guest's characters go; input is stdin for stdio and file, the pty for pty.",
)
@click.option("--max-insns", type=int, metavar="N", help="Stop after N instructions (not on KVM).")
@click.option("--max-exits", type=int, metavar="N", help="Stop after N accesses to devices.")
@click.option("--trace", metavar="FILE", help="Write each exit to FILE as JSON Lines.")
@click.option("--record", metavar="FILE", help="Keep the run in FILE, for vmmsim replay.")
@click.option("-s", "gdb_default", is_flag=True, help="Wait for gdb at tcp:127.0.0.1:1234, as QEMU does.")
@click.option("--gdb", metavar="ADDR", help="Wait for gdb at tcp:HOST:PORT or unix:PATH.")
@click.option("-S", "--freeze", is_flag=True, help="With gdb: do not start before it says so.")
@click.option("--reverse", is_flag=True, help="With gdb: keep a history, so that it can go back in time.")
@click.option("--gdb-remote", is_flag=True, help="With gdb: allow an address that other hosts reach.")
@click.option(
    "--gdb-arch",
    type=click.Choice(["auto", "x86-64", "i386"]),
    default="auto",
    show_default=True,
    help="With gdb: how the CPU is described; auto is i386 for a 32-bit ELF file.",
)
@click.option("--count-insns", is_flag=True, help="Count instructions for --json (slower; not on KVM).")
@click.option("--cheat", is_flag=True, help="When the guest says that the game is lost, go back in time.")
@click.option(
    "--snapshot-on",
    "when",
    metavar="WHEN",
    help="When to write a snapshot: guest (it asks), exit:N, insns:N (not on KVM), serial:REGEX.",
)
@click.option("-o", "--output", "file", metavar="FILE", help="The snapshot file to write.")
@click.option(
    "--then",
    type=click.Choice(["run", "stop"]),
    default="run",
    show_default=True,
    help="What to do behind the snapshot.",
)
@json_option
def command(
    serial: str,
    trace: str | None,
    record: str | None,
    count_insns: bool,
    as_json: bool,
    cheat: bool,
    when: str | None,
    file: str | None,
    then: str,
    gdb_default: bool,
    gdb: str | None,
    freeze: bool,
    reverse: bool,
    gdb_remote: bool,
    gdb_arch: str,
    **options: Any,
) -> int:
    """Run GUEST (a name of `vmmsim guests`) or FILE: an ELF, a flat binary, or a snapshot, which goes on.

    A built-in name is the built-in guest; write ./NAME for a file of that name. The guest's
    characters are on stdout and come from stdin; on a terminal, Ctrl-a x stops it.

    With --json stdout has one object instead, with the output in base64.
    """  # fmt: skip
    taker = Taker.of(when, file, then)
    choices = Choices(**options, count_insns=count_insns or taker.insns > 0)
    limits = budgets(choices)
    debugging = Debugging.of(gdb_default, gdb, freeze, reverse, gdb_remote, gdb_arch, limits)
    target = resolve(choices)
    if cheat:
        check_cheat(target)
    if debugging is not None:
        debugging.settle(choices, target)
    stop = Stop()
    with contextlib.ExitStack() as stack:
        port = open_serial(choices, target, serial, as_json, stop)
        stack.callback(port.close)
        source = port.source if record is None else recording_source(record, port.source)
        machine = stack.enter_context(open_machine(choices, target, source=source, sink=port.sink))
        stop.machine = machine
        if port.path is not None:
            say(f"the guest's serial port is {port.path}")
        server = None if debugging is None else stack.enter_context(debugging.open(target, choices.quiet))
        finish = stack.enter_context(tracing(machine, target, trace))
        taker.arm(machine)
        if cheat:
            stack.callback(cheating(machine, target))
        keep = start_recording(machine, target, record)
        end: Exit | DeviceError | None = None
        try:
            with terminal(serial, choices):
                if debugging is None or server is None:
                    end = run_to_end(lambda: taker.run(machine, limits))
                else:
                    serve = debugging.serve
                    end = run_to_end(lambda: serve(server, machine, target, lambda: stop.asked))
        finally:
            # Also when stdout is gone or a signal ends it: the file says how far it came.
            finish(end)
            keep(end)
        taker.say_missing()
        result = taker.judge(end) or judge(machine, end, stop)
        if as_json:
            print_json(machine, target, end, result)
        return result.code
