"""The guests that come with vmmsim: guests/<name>/ in the source tree, vmmsim/_guests in a
wheel. Each has its source, its bytes as hexadecimal text, and guest.toml, the manifest that
says how it starts and what it is expected to do. guests/README.md tells how to add one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from .errors import ImageError, ImageNotFound
from .loaders.flat import load_flat
from .loaders.image import LoadedImage
from .memory import parse_size

__all__ = ["Cheat", "Expected", "Guest", "Manifest", "MemoryCheck", "load", "names", "root"]


_PACKAGE = Path(__file__).resolve().parent


class MemoryCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`hex` is what lies at guest-physical `address` in the end; `what` names it for people."""

    address: int
    hex: str
    what: str = ""

    @property
    def data(self) -> bytes:
        """`hex` as bytes."""
        return bytes.fromhex(self.hex)


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the run ends. `exit` is the kind of the last exit, `code` the status of a
    `guest_exit`, `output` every character that the guest wrote to the UART, the debug
    console and CharOut, in order; `registers` the final values by their 64-bit names;
    `max_exits` a bound on the accesses that the run makes. `output` is None (left out) where it
    depends on chance."""

    exit: str
    max_exits: int
    code: int | None = None
    output: str | None = None
    registers: dict[str, int] = {}
    memory: tuple[MemoryCheck, ...] = ()


class Cheat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For `vmmsim run --cheat`: regular expressions over what the guest prints. `begin` matches where
    a game begins, `lost` when it is lost."""

    begin: str
    lost: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """guest.toml. `load` and `entry` are addresses in bytes, `memory` the least size of RAM as
    `-m` takes it, `devices` what it needs beside those of its machine `model`, `clock` and `cpus`
    as `MachineConfig` has them, `input` what the player types, `refused` provenance -> reason
    where it cannot run, `cheat` what `--cheat` watches for."""

    title: str
    mode: str
    load: int
    entry: int
    memory: str
    bits: int
    expected: Expected
    devices: tuple[str, ...] = ()
    model: str = "bare"
    clock: str = "host"
    cpus: int = 1
    input: str = ""
    refused: dict[str, str] = {}
    cheat: Cheat | None = None


class Guest(msgspec.Struct, frozen=True):
    """A guest: its manifest, its machine code, and its assembler source."""

    name: str
    manifest: Manifest
    code: bytes
    source: str

    @property
    def memory(self) -> int:
        """The least RAM that it needs, in bytes."""
        return parse_size(self.manifest.memory)

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of the devices that it needs beside those of its machine model."""
        return self.manifest.devices

    @property
    def machine(self) -> dict[str, Any]:
        """The fields of `MachineConfig` in which its machine is another than the usual one."""
        manifest = self.manifest
        usual = {"model": "bare", "clock": "host", "cpus": 1}
        fields = {name: getattr(manifest, name) for name in usual if getattr(manifest, name) != usual[name]}
        if self.memory:
            fields["memory"] = self.memory
        return {**fields, "extra_devices": manifest.devices}

    @property
    def input(self) -> bytes:
        """What is typed to it in its test."""
        return self.manifest.input.encode()

    @property
    def image(self) -> LoadedImage:
        """The image to place, ready for its mode."""
        manifest = self.manifest
        return load_flat(
            self.code,
            name=self.name,
            load_address=manifest.load,
            mode=manifest.mode,
            entry=manifest.entry,
        )


def root() -> Path:
    """Where the guests are: inside the installed package, or else in the source tree.

    Raises ImageNotFound when there are none. (importlib.resources would do as well, but
    costs 10 ms at each start of the command line.)
    """
    for folder in (_PACKAGE / "_guests", _PACKAGE.parent / "guests"):
        if folder.is_dir():
            return folder
    raise ImageNotFound(
        "this installation of vmmsim has no guests", hint="install it again: pip install vmmsim"
    )


def names() -> list[str]:
    """The names of all guests, sorted."""
    return sorted(entry.name for entry in root().iterdir() if (entry / "guest.toml").is_file())


def load(name: str) -> Guest:
    """The guest `name`.

    Raises ImageNotFound when there is none of that name, ImageError for one whose files are
    not sound (which only someone who writes a guest sees).
    """
    if name not in names():
        raise ImageNotFound(f"there is no guest '{name}'", hint=f"there are {', '.join(names())}")
    folder = root() / name
    try:
        text = (folder / "guest.toml").read_text(encoding="utf-8")
        manifest = msgspec.convert(tomllib.loads(text), Manifest)
        code = bytes.fromhex((folder / f"{name}.hex").read_text(encoding="ascii"))
        source = (folder / f"{name}.asm").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a wrong manifest, TOML and hex are ValueErrors
        raise ImageError(f"the guest '{name}' is not sound: {error}", hint="see guests/README.md") from error
    return Guest(name, manifest, code, source)
