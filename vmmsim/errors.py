"""Whose fault it was: the guest's, the caller's, or the host's.

Every error of vmmsim is one of the three classes below, so that a caller can tell "my
guest crashed" from "I called it wrong" from "this machine cannot". A message names the
thing, the rule that it broke, and the remedy; the remedy is kept apart (`hint`) so that
the command line can set it on a line of its own.
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "BackendUnavailable",
    "DeviceError",
    "GuestError",
    "HostError",
    "ImageError",
    "ImageNotFound",
    "MigrationError",
    "MigrationInDoubt",
    "NotSupported",
    "SnapshotError",
    "UsageError",
    "VmmsimError",
    "reader_gone",
]


class VmmsimError(Exception):
    """Base of all errors of vmmsim.

    `exit_code` is what the command line ends with when the error reaches it.
    """

    exit_code = 125

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(VmmsimError):
    """The caller did it: a bad argument, a call in the wrong order."""


class ImageError(UsageError):
    """A guest image that cannot be loaded: truncated, foreign, too large."""


class ImageNotFound(ImageError):
    """There is no guest and no file of this name."""

    exit_code = 127


class SnapshotError(UsageError):
    """A snapshot that cannot be loaded: damaged, foreign, of another version, without its parent."""

    exit_code = 123


class GuestError(VmmsimError):
    """The guest did it: it ended in a way that nobody asked for."""

    exit_code = 121


class HostError(VmmsimError):
    """The host cannot: an operating system call failed or a resource is missing."""


class MigrationError(HostError):
    """A migration came to nothing: the network, the other side, its key. The machine is still at the
    source, and can run on."""


class MigrationInDoubt(MigrationError):
    """The machine was given away and nobody has confirmed it: it may run at the destination, and
    must not be run here before somebody has looked."""


class NotSupported(HostError):
    """This backend cannot do what was asked; it never pretends that it did."""


class BackendUnavailable(HostError):
    """A backend that was asked for by name cannot be opened here.

    `reason` says what is missing in words, `hint` is the one thing that mends it.
    """

    exit_code = 126

    def __init__(self, backend: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"backend '{backend}' is not available: {reason}", hint=hint)
        self.backend = backend
        self.reason = reason


class DeviceError(VmmsimError):
    """A device model raised while it answered an access.

    The machine has stopped at an instruction boundary and can still be inspected: a
    write counts as made, a read has answered all ones. The cause is chained.
    """

    def __init__(self, device: str, access: str, rip: int, cause: BaseException) -> None:
        super().__init__(
            f"device '{device}' raised {type(cause).__name__} on {access} (rip {rip:#x}): {cause}",
            hint="the error is in the device model; the machine stopped at an instruction boundary",
        )
        self.device = device
        self.access = access
        self.rip = rip


def reader_gone(error: object, platform: str = os.name) -> bool:
    """Whether `error` is of a write to a pipe that nobody reads any more. On Windows that is
    ERROR_NO_DATA, which the C library does not know, so that EINVAL becomes of it."""
    if isinstance(error, BrokenPipeError):
        return True
    return platform == "nt" and isinstance(error, OSError) and error.errno == errno.EINVAL
