"""`vmmsim`: the verbs, and how errors and exit codes come out.

Importing this loads click and nothing of a machine: `vmmsim --help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import VmmsimError, reader_gone
from .output import note, plain_streams, say
from .qemu_words import qemu_hint

__all__ = ["VERBS", "cli", "main"]

#: verb -> (module in vmmsim.cli, one line of help). The module has a click command `command`.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "What a VMM does, in seven steps, on the CPUs that this host has."),
    "run": ("run", "Run a guest."),
    "exits": ("exits", "Show each exit that a guest makes, as a line."),
    "step": ("step", "Go through a guest exit by exit, and answer for its devices."),
    "trace": ("trace", "Record a guest's exits in detail, as a page or for other viewers."),
    "diff": ("diff", "Run a guest on two CPUs and find the first difference."),
    "guests": ("guests", "List the built-in guests."),
    "devices": ("devices", "List the devices of a machine model."),
    "doctor": ("doctor", "Say what this host can run, and what to mend."),
    "clone": ("clone", "Run many clones of a snapshot."),
    "replay": ("replay", "Run a recording (run --record) again, on any CPU, and check each exit."),
    "snapshot": ("snapshot", "Look at snapshot files, check, compare, pack and join them."),
    "migrate": ("migrate", "Run a guest, and move it to a receiver while it runs."),
    "receive": ("receive", "Wait for a machine that moves here, and run it to its end."),
    "vectors": ("vectors", "Run vectors recorded from hardware on a CPU and on the devices."),
    "fuzz": ("fuzz", "Run random programs on two CPUs, and list in what they differ."),
    "asm": ("asm", "Assemble a source file to a flat binary."),
}

_NO_ROOM = (errno.ENOSPC, errno.EIO, errno.EFBIG)
_USAGE = 125
_CTRL_C = 130
_PIPE = 141

_EPILOG = """\
\b
Exit codes:
  0-119  the guest's own code (0 also when it halts without one)
  120    triple fault
  121    an exit that nobody handles, or a kernel that panicked
  122    what was compared differs
  123    a snapshot cannot be loaded
  124    the budget, or the time, is spent
  125    usage or internal error
  126    the backend is not available
  127    no such guest or image
  130    stopped by Ctrl-C; 141 the reader of stdout went away
"""


class _Verbs(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        return import_module(f"vmmsim.cli.{VERBS[name][0]}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, 1)
            raise click.UsageError(
                f"there is no verb '{args[0]}'" + (f"; did you mean '{near[0]}'?" if near else ""), ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run, and end the process with the right code; what went wrong is a line on stderr."""
        if "_VMMSIM_COMPLETE" in os.environ:  # a shell asks for completions
            super().main(args, prog_name="vmmsim")
        if os.name == "nt":
            plain_streams()
        with _ending_signals():
            words = sys.argv[1:] if args is None else list(args)
            code = _guarded(lambda: self._dispatch(list(words)), words)
        sys.exit(code)

    def _dispatch(self, args: list[str]) -> Any:
        # click's own main() would turn a closed pipe into exit code 1, which is a guest's.
        with self.make_context("vmmsim", args) as ctx:
            return self.invoke(ctx)


@click.group(
    cls=_Verbs,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="vmmsim", message="%(prog)s %(version)s")
def cli() -> None:
    """Run x86 guests on real KVM or on Unicorn, and see what the CPU asks of a VMM.

    The guest's output is on stdout, everything else on stderr. Start with `vmmsim demo`.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. Ends the process."""
    cli.main(argv)


def _guarded(run: Callable[[], Any], arguments: Sequence[str]) -> int:
    """The exit code of `run`, with every error told in the words of its kind."""
    try:
        result = run()
        return _flushed(result if isinstance(result, int) else 0)
    except click.exceptions.Exit as error:  # --help, --version
        return _flushed(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.ctx.get_help() if error.ctx else error.format_message())
        return _USAGE
    except click.ClickException as error:
        _usage_error(error, arguments)
        return _USAGE
    except (click.Abort, KeyboardInterrupt):
        say("stopped by Ctrl-C")
        return _CTRL_C
    except BrokenPipeError:
        _abandon_stdout()
        return _PIPE
    except VmmsimError as error:
        if reader_gone(error.__cause__):
            _abandon_stdout()
            return _PIPE
        if isinstance(error.__cause__, OSError):
            # Perhaps it was stdout that failed: its buffer must not fail once more.
            _flushed(0)
        if os.environ.get("VMMSIM_DEBUG"):
            _traceback()
        _error(error.message, error.hint)
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            _abandon_stdout()  # click's own output: the help
            _error(f"standard output cannot be written: {error.strerror}", "check where it is redirected to")
        else:
            _internal_error(error)
        return _USAGE


def _error(message: str, hint: str = "") -> None:
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def _usage_error(error: click.ClickException, arguments: Sequence[str]) -> None:
    message = error.format_message()
    hint = ""
    if isinstance(error, click.NoSuchOption):
        message = f"there is no option {error.option_name}"
        if error.possibilities:
            hint = "did you mean " + " or ".join(error.possibilities) + "?"
    unknown = error.option_name if isinstance(error, click.NoSuchOption) else ""
    hint = qemu_hint(arguments, unknown) or hint
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if not hint and ctx is not None and "did you mean" not in message.lower():
        hint = f"see: {ctx.command_path} --help"
    _error(message[:1].lower() + message[1:].rstrip("."), hint)


def _internal_error(error: Exception) -> None:
    if os.environ.get("VMMSIM_DEBUG"):
        _traceback()
    place = ""
    trace = error.__traceback__
    while trace is not None:
        place = f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    _error(
        f"internal error: {type(error).__name__}{place}: {error}",
        "this is a fault in vmmsim; VMMSIM_DEBUG=1 shows the traceback for a report",
    )


def _traceback() -> None:
    import traceback

    note(traceback.format_exc().rstrip())


def _flushed(code: int) -> int:
    """`code`, or another if stdout cannot take what is left in its buffer."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _abandon_stdout()
        return _PIPE if reader_gone(error) else _USAGE
    return code


def _abandon_stdout() -> None:
    """stdout cannot be written: the interpreter must not flush into it once more at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextlib.contextmanager
def _ending_signals() -> Iterator[None]:
    """SIGTERM, SIGHUP and Windows's Ctrl-Break end the process as an exception does, so that the
    terminal is restored."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    saved: list[tuple[int, Any]] = []
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not in the main thread
                saved.append((number, signal.signal(number, end)))
    try:
        yield
    finally:
        for number, handler in saved:
            signal.signal(number, handler)
