"""`--kernel`, `--initrd`, `--append`: from files to an image that boots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import layout
from ..errors import HostError, ImageError, ImageNotFound, UsageError
from ..memory import parse_size

if TYPE_CHECKING:
    from .common import Choices, Target

__all__ = ["kernel_target"]


def kernel_target(choices: Choices) -> Target:
    """The kernel of `--kernel`, ready to be loaded into a machine of the memory asked for.

    Raises ImageNotFound, ImageError, UsageError.
    """
    from ..loaders import BootModule, kernel_format, load_kernel, split_modules
    from .common import Target

    for option, value in (("a guest", choices.guest), ("--load", choices.load), ("--mode", choices.mode)):
        if value:
            raise UsageError(f"--kernel with {option}", hint="a kernel says itself where and how it starts")
    path = choices.kernel or ""
    data = _read(path, "kernel")
    name = Path(path).name
    memory = layout.DEFAULT_MEMORY if choices.memory is None else parse_size(choices.memory)
    initrd, modules = None, []
    if choices.initrd is not None:
        if kernel_format(data, name=name) == "multiboot":
            for file, text in split_modules(choices.initrd):
                modules.append(BootModule(_read(file, "module"), text))
        else:
            initrd = _read(choices.initrd, "initial RAM disk")
    image = load_kernel(
        data,
        name=name,
        memory_size=memory,
        initrd=initrd,
        append=choices.append,
        modules=modules,
        path=Path(path),
    )
    return Target(name, image, False)


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageNotFound(f"there is no {what} '{path}'", hint="check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"'{path}' is a directory", hint=f"give the {what} in it") from error
    except PermissionError as error:
        raise ImageError(f"'{path}' must not be read: permission denied", hint="chmod +r it") from error
    except (OSError, ValueError) as error:
        raise HostError(f"the {what} '{path}' cannot be read: {error}", hint="check the path") from error
