"""`--kernel`, `--initrd`, `--append`: from files to an image that boots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import layout
from ..errors import UsageError
from ..memory import parse_size

if TYPE_CHECKING:
    from .common import Choices, Target

__all__ = ["kernel_target"]


def kernel_target(choices: Choices) -> Target:
    """The kernel of `--kernel`, ready to be loaded into a machine of the memory asked for.

    Raises ImageNotFound, ImageError, UsageError.
    """
    from ..loaders import BootModule, kernel_format, load_kernel, read_file, split_modules
    from .common import Target

    for option, value in (("a guest", choices.guest), ("--load", choices.load), ("--mode", choices.mode)):
        if value:
            raise UsageError(f"--kernel with {option}", hint="a kernel says itself where and how it starts")
    path = choices.kernel or ""
    data = read_file(path, "kernel")
    name = Path(path).name
    memory = layout.DEFAULT_MEMORY if choices.memory is None else parse_size(choices.memory)
    initrd, modules = None, []
    if choices.initrd is not None:
        if kernel_format(data, name=name) == "multiboot":
            for file, text in split_modules(choices.initrd):
                modules.append(BootModule(read_file(file, "module"), text))
        else:
            initrd = read_file(choices.initrd, "initial RAM disk")
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
