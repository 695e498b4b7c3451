"""KVM_RUN as a call that a signal ends.

A signal is the one thing that gets a thread out of KVM_RUN (see kvm_kick.py). Up to Python 3.13
`fcntl.ioctl` comes back from it with EINTR. Since 3.14 it calls again as long as no signal handler
in Python raises (gh-132742, after PEP 475), and with `immediate_exit` set it would do so for ever;
there KVM_RUN is the C library's ioctl. No other ioctl of KVM's waits for a signal: those are
`fcntl.ioctl` everywhere, and KVM_CREATE_VM, which a signal can end too, wants to be called again.

A ctypes function with `argtypes` makes an object of each argument. One without takes ints as they
are, as C ints, which these three fit: an exit costs 0.4 microseconds more than by `fcntl`, not 0.8.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from collections.abc import Callable
from functools import cache, partial

from . import kvm_abi as abi

__all__ = ["entry", "failure"]

#: Whether `fcntl.ioctl` calls again after a signal. Tests set it, to try both ways on each Python.
FCNTL_RETRIES = sys.version_info >= (3, 14)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def entry(fd: int) -> Callable[[], int]:
    """What calls KVM_RUN on the vCPU `fd`. It gives 0 for an exit, and else raises OSError or gives
    -1, where `failure` makes the OSError. Python's signal handlers run before either is seen."""
    if FCNTL_RETRIES:
        return partial(_libc().ioctl, fd, abi.RUN, 0)
    # A third argument costs `fcntl.ioctl` a tenth of an exit: it tries it as a buffer first, twice.
    return partial(fcntl.ioctl, fd, abi.RUN)


def failure() -> OSError:
    """Why the last KVM_RUN of this thread gave -1."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
