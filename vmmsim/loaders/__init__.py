"""Loaders: a file of some format becomes one `LoadedImage`. The format is told by its magic."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import HostError, ImageError, ImageNotFound, UsageError
from .elf import MAGIC, load_elf
from .flat import load_flat
from .image import BootModule, ImageSegment, LoadedImage, RomRegion
from .kernel import kernel_format, load_kernel, split_modules
from .near_miss import check_flat
from .rom import load_rom

__all__ = [
    "BootModule",
    "ImageSegment",
    "LoadedImage",
    "RomRegion",
    "kernel_format",
    "load_bytes",
    "load_elf",
    "load_file",
    "load_flat",
    "load_kernel",
    "load_rom",
    "read_file",
    "split_modules",
]

#: What to do where a file is missing, if it is not to look at the path.
_MISSING = {"image": "give a file, or a name that 'vmmsim guests' lists"}


def read_file(path: str | os.PathLike[str], what: str = "image") -> bytes:
    """The bytes of the file `path`; `what` it is, for errors.

    Raises ImageNotFound when there is no such file, ImageError when it is a directory or must
    not be read, HostError for the rest.
    """
    file = Path(path)
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise ImageNotFound(
            f"there is no {what} '{path}'", hint=_MISSING.get(what, "check the path")
        ) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise ImageError(f"'{path}' is no {what} file", hint="give the file, not its directory") from error
    except PermissionError as error:
        if file.is_dir():  # what Windows says of a directory
            raise ImageError(f"'{path}' is a directory", hint="give the file in it") from error
        raise ImageError(f"'{path}' must not be read: permission denied", hint="chmod +r it") from error
    except ValueError as error:
        raise ImageNotFound(
            f"there is no {what} {str(path)!r}", hint="a path has no NUL character"
        ) from error
    except OSError as error:
        raise HostError(f"'{path}' cannot be read: {error.strerror}", hint="try to copy the file") from error


def load_file(
    path: str | os.PathLike[str],
    *,
    load_address: int | None = None,
    mode: str | None = None,
    entry: int | None = None,
) -> LoadedImage:
    """The image in the file `path`: an ELF executable, or else a flat binary.

    `load_address` is guest-physical, `entry` linear; see `load_flat` and `load_elf` for what
    holds when they are None. Raises ImageNotFound when there is no such file, ImageError
    when it is a directory, cannot be read, is empty, or is not a sound image for x86.
    """
    data = read_file(path)
    return load_bytes(
        data, name=Path(path).name, load_address=load_address, mode=mode, entry=entry, path=Path(path)
    )


def load_bytes(
    data: bytes,
    *,
    name: str = "image",
    load_address: int | None = None,
    mode: str | None = None,
    entry: int | None = None,
    path: Path | None = None,
) -> LoadedImage:
    """`load_file` for bytes that are at hand."""
    if not data.startswith(MAGIC):
        if load_address is None and mode is None and entry is None:
            check_flat(data, name)
        return load_flat(data, name=name, load_address=load_address, mode=mode, entry=entry, path=path)
    if load_address is not None:
        raise UsageError(
            f"{name} is an ELF file, which says itself where it goes",
            hint="leave --load away, or link it for another address",
        )
    return load_elf(data, name=name, mode=mode, entry=entry, path=path)
