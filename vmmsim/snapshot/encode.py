"""The manifest: all of a Snapshot but its pages, as JSON, and back.

The manifest of a file, the head of a migration's stream. `decode_manifest` is strict: what it
returns can be restored by a machine of this build, or it raises SnapshotError.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import msgspec

from .. import __version__, models
from ..config import MachineConfig
from ..cpu.msrs import STATE_MSRS
from ..cpu.validate import validate
from ..errors import SnapshotError, UsageError
from .codec import decode, encode, printable
from .pages import MemoryImage, MemoryRegion, check_regions
from .values import ClockState, CpuSnapshot, Provenance, RandomState, Snapshot

__all__ = [
    "LATER_DEVICES",
    "LATER_MSRS",
    "Link",
    "Manifest",
    "decode_link",
    "decode_manifest",
    "encode_manifest",
    "parse_json",
    "state_type",
    "state_types",
]

_MOST_CPUS = 255
_HEX_DIGITS = frozenset("0123456789abcdef")
#: MSRs that CpuState got after format 1's first file: one that lacks them can be loaded.
LATER_MSRS: frozenset[int] = frozenset()
#: Devices that a model got after format 1's first file. A file of a machine without one can be
#: loaded: its configuration then leaves the device out, so that the machine is what it was.
LATER_DEVICES: frozenset[str] = frozenset()


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest's fields, in the order of the file. `parent` is the id of the snapshot
    whose pages hold where this one has none."""

    writer: str
    parent: str | None
    parent_name: str | None
    config: MachineConfig
    cpus: tuple[CpuSnapshot, ...]
    clock: ClockState
    input_position: int
    random_state: RandomState | None
    generation: int
    provenance: Provenance
    regions: tuple[MemoryRegion, ...]
    devices: dict[str, Any]

    def snapshot(self, memory: MemoryImage) -> Snapshot:
        """The snapshot, with its memory."""
        return Snapshot(
            config=self.config,
            cpus=self.cpus,
            memory=memory,
            devices=self.devices,
            clock=self.clock,
            input_position=self.input_position,
            random_state=self.random_state,
            generation=self.generation,
            provenance=self.provenance,
        )


#: The fields that are decoded by their type; devices are decoded by their name.
_HEAD = msgspec.defstruct(
    "_Head",
    [(f.name, f.type) for f in msgspec.structs.fields(Manifest) if f.name != "devices"],
    frozen=True,
    kw_only=True,
)


def state_types(config: MachineConfig) -> list[str]:
    """The names that the devices of a machine of `config` have in a snapshot."""
    names = []
    for name in models.names(config):
        names += [name, *(f"{name}.{part}" for part, _ in models.DEVICES[name].parts)]
    return names


@cache
def state_type(name: str) -> type[msgspec.Struct] | None:
    """The type of a device's state by its name in a snapshot; None for what this build lacks."""
    device, _, part = name.partition(".")
    spec = models.DEVICES.get(device)
    if spec is None:
        return None
    path = dict(spec.parts).get(part, "") if part else spec.state_type
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute) if module else None


def encode_manifest(
    snapshot: Snapshot,
    *,
    parent: str | None = None,
    parent_name: str | None = None,
    extra: Mapping[str, type[msgspec.Struct]] | None = None,
) -> bytes:
    """The manifest of `snapshot` as UTF-8 JSON. `extra`: types of devices that are in no table.

    Raises UsageError for what `decode_manifest` would refuse.
    """
    found = Manifest(
        writer=f"vmmsim/{__version__}",
        parent=parent,
        parent_name=parent_name,
        config=snapshot.config,
        cpus=snapshot.cpus,
        clock=snapshot.clock,
        input_position=snapshot.input_position,
        random_state=snapshot.random_state,
        generation=snapshot.generation,
        provenance=snapshot.provenance,
        regions=snapshot.memory.regions,
        devices=snapshot.devices,
    )
    for name, state in snapshot.devices.items():
        kind = _type_of(name, extra)
        if kind is not None and type(state) is not kind:
            raise UsageError(
                f"the state of device '{name}' is a {type(state).__name__}, not a {kind.__name__}",
                hint="keep what the device's state() gives",
            )
    try:
        text = msgspec.json.format(msgspec.json.encode(encode(found)), indent=1)
        if decode_manifest(text, extra) != found:
            raise UsageError("a value is not of its field's type", hint="see vmmsim.snapshot.values")
    except UnicodeEncodeError as error:
        raise UsageError("a text is not Unicode", hint="see provenance.comment") from error
    except SnapshotError as error:
        raise UsageError(f"not a whole snapshot: {error.message}", hint=error.hint) from error
    return text


def parse_json(data: bytes) -> dict[str, Any]:
    """An object of JSON. Raises SnapshotError, for nesting without end too."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise SnapshotError(f"the manifest is not JSON: {error}", hint="the file is damaged") from error
    if not isinstance(raw, dict):
        raise SnapshotError("the manifest is not a JSON object", hint="the file is damaged")
    return raw


def decode_manifest(data: bytes, extra: Mapping[str, type[msgspec.Struct]] | None = None) -> Manifest:
    """The manifest from its JSON. `extra` as for `encode_manifest`.

    Every device of the configuration has to have its state, and no other device but those of
    `extra`. Raises SnapshotError.
    """
    decode_link(data)
    raw = parse_json(data)
    states = raw.pop("devices", None)
    head = decode(raw, _HEAD)
    if not isinstance(states, dict):
        raise SnapshotError("the manifest has no object 'devices'", hint="the file is damaged")
    devices = {}
    for name, state in states.items():
        kind = _type_of(name, extra)
        if kind is None:
            raise SnapshotError(
                f"it has a device {name[:40]!r}, which this vmmsim does not have",
                hint="use the vmmsim that wrote it, or give the device's state type",
            )
        devices[name] = decode(state, kind, f"devices.{name}")
    fields = {f: getattr(head, f) for f in head.__struct_fields__}
    try:
        fields["config"] = _without_later(head.config, states)
        found = Manifest(devices=devices, **fields)
        _check(found, extra if extra is not None else {})
    except SnapshotError:
        raise
    except UsageError as error:
        raise SnapshotError(
            f"the snapshot is not one of a machine: {printable(error.message)}", hint=error.hint
        ) from error
    return found


def _without_later(config: MachineConfig, states: Mapping[str, Any]) -> MachineConfig:
    """`config` as it was meant when there were fewer devices."""
    later = sorted(LATER_DEVICES.intersection(models.names(config)).difference(states))
    return msgspec.structs.replace(config, without=(*config.without, *later)) if later else config


class Link(msgspec.Struct, frozen=True):
    """What a file has to do with its parent: enough of a manifest to use its pages alone."""

    parent: str | None
    parent_name: str | None
    regions: tuple[MemoryRegion, ...]


def decode_link(data: bytes) -> Link:
    """The link in a manifest, whatever else is there. Raises SnapshotError."""
    raw = parse_json(data)
    link: Link = decode({f: raw[f] for f in Link.__struct_fields__ if f in raw}, Link)
    if link.parent is not None and not (len(link.parent) == 64 and set(link.parent) <= _HEX_DIGITS):
        raise SnapshotError(f"the parent {link.parent[:70]!r} is no id", hint="the file is damaged")
    name = link.parent_name
    if name is not None and (name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\:")):
        raise SnapshotError(f"the parent's name {name[:70]!r} is no file name", hint="the file is damaged")
    if name is not None and link.parent is None:
        raise SnapshotError("a parent with a name and without an id", hint="the file is damaged")
    return link


def _type_of(name: str, extra: Mapping[str, type[msgspec.Struct]] | None) -> type[msgspec.Struct] | None:
    return extra[name] if extra is not None and name in extra else state_type(name)


def _check(found: Manifest, extra: Mapping[str, Any]) -> None:
    """What types do not say. Raises UsageError or SnapshotError."""
    found.snapshot(MemoryImage(found.regions))
    check_regions(found.regions)
    if len(found.cpus) > _MOST_CPUS:
        raise UsageError(f"{len(found.cpus)} CPUs", hint=f"at most {_MOST_CPUS}")
    for cpu in found.cpus:
        validate(cpu.state)
        if missing := STATE_MSRS.keys() - LATER_MSRS - cpu.state.msrs.keys():
            raise UsageError(f"MSR {min(missing):#x} is missing", hint="a whole CpuState has it")
    wanted = state_types(found.config)
    for name in wanted:
        if name not in found.devices:
            raise SnapshotError(f"the state of device '{name}' is missing", hint="the configuration has it")
    for name in found.devices:
        if name not in wanted and name not in extra:
            raise SnapshotError(
                f"it has a state of {name[:40]!r}, which its machine lacks",
                hint="see extra_devices of its config",
            )
