"""`--kernel`, `--initrd`, `--append`, `--bios`: from files to an image that boots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import layout
from ..errors import UsageError
from ..memory import parse_size

if TYPE_CHECKING:
    from .common import Choices, Target

__all__ = ["bios_target", "kernel_target"]


def kernel_target(choices: Choices) -> Target:
    """The kernel of `--kernel`, ready to be loaded into a machine of the memory asked for.

    Raises ImageNotFound, ImageError, UsageError.
    """
    from ..loaders import BootModule, kernel_format, read_file, split_modules
    from ..pc_tables import boot_kernel
    from .common import Target, machine_config

    if choices.bios is not None:
        raise UsageError("--kernel with --bios", hint="firmware boots from disks; leave one of them out")
    _refuse_others(choices, "--kernel", "a kernel says itself where and how it starts")
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
    image = boot_kernel(
        machine_config(choices, memory),
        data,
        name=name,
        initrd=initrd,
        append=choices.append,
        modules=modules,
        path=Path(path),
    )
    return Target(name, image, False)


def bios_target(choices: Choices) -> Target:
    """The firmware of `--bios`, ready to be loaded. Raises ImageNotFound, ImageError, UsageError."""
    from ..loaders import load_rom, read_file
    from .common import Target

    _refuse_others(choices, "--bios", "firmware starts where the CPU does after a reset")
    for option, value in (("--initrd", choices.initrd), ("--append", choices.append)):
        if value:
            raise UsageError(f"--bios with {option}", hint="that is for a kernel: give it with --kernel FILE")
    path = choices.bios or ""
    name = Path(path).name
    return Target(name, load_rom(read_file(path, "firmware"), name=name, path=Path(path)), False)


def _refuse_others(choices: Choices, what: str, hint: str) -> None:
    given = (
        ("a guest", choices.guest),
        ("--load", choices.load),
        ("--mode", choices.mode),
        ("--entry", choices.entry),
    )
    for option, value in given:
        if value:
            raise UsageError(f"{what} with {option}", hint=hint)
