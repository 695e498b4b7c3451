"""`vmmsim run --record`: what a run needs to be recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError, UsageError, VmmsimError
from ..exits import Exit
from .output import say

if TYPE_CHECKING:
    from ..machine import Machine
    from .common import Target

__all__ = ["recording_source", "start_recording"]


def recording_source(path: str, source: Any) -> Any:
    """`source`, as the recorder needs it. UsageError where `path` could not be written at the end."""
    from ..record import RecordingSource

    directory = os.path.dirname(path) or "."
    if not path or os.path.isdir(path) or not os.path.isdir(directory) or not os.access(directory, os.W_OK):
        raise UsageError(
            f"the recording '{path}' cannot be written there",
            hint="give --record a file in a directory of yours",
        )
    return RecordingSource(source)


def start_recording(
    machine: Machine, target: Target, path: str | None
) -> Callable[[Exit | DeviceError | None], None]:
    """Record from here on; gives what keeps the recording, with the run's end."""
    if path is None:
        return lambda end: None
    from ..record import Recorder, save

    recorder = Recorder(machine, guest=target.name)

    def keep(end: Exit | DeviceError | None) -> None:
        try:
            recording = recorder.finish(end if isinstance(end, Exit) else None)
            save(recording, path)
        except VmmsimError as error:  # the run is worth more than its recording
            say(f"warning: the run is not recorded: {error.message}")
            return
        say(f"recorded {recording.end.exits} exits in {path}; again: vmmsim replay {path}")

    return keep
