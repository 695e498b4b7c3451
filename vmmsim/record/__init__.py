"""Record and replay: a run kept as what came to it from outside, and run again on any CPU."""

from __future__ import annotations

from .format import End, Input, InputEnd, Interrupt, Recording, RecordingError, load, save
from .recorder import Recorder, RecordingSource
from .replayer import Derailed, Replay, replay

__all__ = [
    "Derailed",
    "End",
    "Input",
    "InputEnd",
    "Interrupt",
    "Recorder",
    "Recording",
    "RecordingError",
    "RecordingSource",
    "Replay",
    "load",
    "replay",
    "save",
]
