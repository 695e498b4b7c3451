"""What is compared: a workload, and the two sides that run it.

A side is a backend, and where it is otherwise than the workload says: devices of another class,
fields of another value. Both sides have the clock of exits and the same input, so what differs
between two runs is what differs between the sides.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec

from .. import models
from ..backends import REGISTRY, availability, open_backend
from ..backends.base import Backend
from ..config import MachineConfig
from ..errors import UsageError, VmmsimError
from ..machine import Machine
from ..memory import parse_size
from ..streams import BytesSource
from ..wiring import Wiring

if TYPE_CHECKING:
    from ..chassis import Maker
    from ..loaders import LoadedImage
    from ..snapshot.values import Snapshot

__all__ = [
    "PORTABLE",
    "Side",
    "Workload",
    "backend_names",
    "check_side",
    "device_maker",
    "open_named",
    "usable",
]

#: Unicorn by its documented API alone, whatever VMMSIM_UNICORN says.
PORTABLE = "unicorn-portable"
#: Other words for devices of a machine.
_ALIASES = {"serial": "uart"}
#: Both sides take their random letters from here, unless the configuration has a seed.
_SEED = 1


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One side. `devices` are classes (or `module:Class`) that take the places of devices of the
    machine, by name; a class is given what its constructor asks for by name (see `device_maker`).
    `settings` are fields of MachineConfig; text is converted. `prepare` is called with the
    machine before the guest is loaded: it may attach devices."""

    backend: str = "unicorn"
    devices: Mapping[str, Callable[..., Any] | str] = msgspec.field(default_factory=dict)
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    prepare: Callable[[Machine], None] | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """What it is called in a report: its label, or its backend with what is special."""
        if self.label:
            return self.label
        special = [f"{name}={_class_name(made)}" for name, made in self.devices.items()]
        special += [f"{name}={value}" for name, value in self.settings.items()]
        return f"{self.backend} ({', '.join(special)})" if special else self.backend


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What both sides run: an image in a machine of `config`, or what goes on from a snapshot.
    `input` is all that is typed; a snapshot has taken its first characters already."""

    name: str
    config: MachineConfig
    image: LoadedImage | None = None
    snapshot: Snapshot | None = None
    input: bytes = b""

    def open(self, side: Side) -> Machine:
        """The machine of one side, about to begin. Closing it closes the backend. Raises UsageError,
        BackendUnavailable, NotSupported."""
        config = configured(self.config, side)
        replace = {_device(name): device_maker(name, made) for name, made in side.devices.items()}
        backend = open_named(side.backend)
        try:
            machine = _Opened(config, backend=backend, source=BytesSource(self.input), replace=replace)
        except BaseException:
            backend.close()
            raise
        try:
            if side.prepare is not None:
                side.prepare(machine)
            if self.snapshot is not None:
                from ..snapshot.values import ClockState

                clock = ClockState(kind="exits", now_ns=self.snapshot.clock.now_ns, step=1000)
                if self.snapshot.clock.kind == config.clock:
                    clock = self.snapshot.clock
                machine.restore(msgspec.structs.replace(self.snapshot, config=config, clock=clock))
            elif self.image is not None:
                machine.load(self.image)
        except BaseException:
            machine.close()
            raise
        return machine


class _Opened(Machine):
    """Closes the backend that was made for it."""

    def close(self) -> None:
        super().close()
        self.backend.close()


def backend_names() -> tuple[str, ...]:
    """The names of backends that a side can have."""
    return (*REGISTRY, PORTABLE)


def _check_backend(name: str) -> None:
    if name not in backend_names():
        near = difflib.get_close_matches(name, backend_names(), 1)
        raise UsageError(
            f"there is no backend '{name}'",
            hint=f"did you mean '{near[0]}'?" if near else "backends are: " + ", ".join(backend_names()),
        )


def usable(name: str) -> tuple[bool, str, str]:
    """Whether a side of this backend can run here: (usable, reason, remedy). UsageError for no name."""
    _check_backend(name)
    found = availability("unicorn" if name == PORTABLE else name)
    return found.usable, found.reason, found.fix


def open_named(name: str) -> Backend:
    """Open a backend of `backend_names`. Raises as `open_backend` does."""
    _check_backend(name)
    if name == PORTABLE:
        from ..backends.unicorn import UnicornBackend

        return UnicornBackend(engine="portable")
    return open_backend(name)[0]


def check_side(workload: Workload, side: Side) -> None:
    """UsageError for a side with a backend, a field or a device that there is not; no backend is
    opened and no device is made."""
    _check_backend(side.backend)
    config = configured(workload.config, side)
    there = models.names(config)
    for name, made in side.devices.items():
        device_maker(name, made)
        if _device(name) not in there:
            raise UsageError(
                f"there is no device '{name}' in this machine to be replaced",
                hint="its devices are: " + ", ".join(there),
            )


# -- fields of the configuration


def configured(config: MachineConfig, side: Side) -> MachineConfig:
    """`config` as this side has it."""
    fields: dict[str, Any] = {"clock": "exits", "seed": config.seed if config.seed is not None else _SEED}
    types = {field.name: field.type for field in msgspec.structs.fields(MachineConfig)}
    for name, value in side.settings.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, 1)
            raise UsageError(
                f"a machine's configuration has no field '{name}'",
                hint=f"did you mean '{near[0]}'?" if near else "fields are: " + ", ".join(types),
            )
        fields[name] = _converted(name, value, types[name]) if isinstance(value, str) else value
    return msgspec.structs.replace(config, **fields)


def _converted(name: str, text: str, kind: Any) -> Any:
    if name == "memory":
        return parse_size(text)
    if kind == tuple[str, ...]:
        return tuple(part for part in text.split(",") if part)
    if text.lower() == "none" and kind not in (str, int, bool):
        return None
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        raise UsageError(
            f"{name}={text}: that is no value of this field", hint="see MachineConfig in vmmsim/config.py"
        ) from None


# -- devices of another class


def _class_name(made: Callable[..., Any] | str) -> str:
    return made if isinstance(made, str) else getattr(made, "__name__", repr(made))


def _device(name: str) -> str:
    return _ALIASES.get(name, name)


def device_maker(name: str, made: Callable[..., Any] | str) -> Maker:
    """What makes the device `name` of a machine by the class `made`, or `module:Class`.

    Its constructor is given those of these that it has a parameter for: `source`, `sink`, `clock`,
    `irq` (its line; one to nowhere if the device has none), `random`, `memory`, `config`, `devices`
    (those made so far), `on_exit`, `on_event`, `wiring` (vmmsim.wiring.Wiring), `state`. UsageError for
    a path that leads nowhere, and when the device is made for a constructor that raises or asks
    for something else.
    """
    spec = models.DEVICES.get(_device(name))
    if spec is None:
        near = difflib.get_close_matches(name, models.DEVICES, 1)
        raise UsageError(
            f"there is no device '{name}'",
            hint=f"did you mean '{near[0]}'?" if near else "'vmmsim devices' lists them",
        )
    factory = _imported(made) if isinstance(made, str) else made
    called = _class_name(made)
    if not callable(factory):
        raise UsageError(f"{called} is not a class", hint="name a class: module:Class")
    faces = {spec.face or "", *(face for _, _, face in spec.faces)}

    def make(w: Wiring) -> Any:
        from ..devices.base import NoIrq

        resources = {
            "source": w.source, "sink": w.sink, "clock": w.clock, "random": w.random, "memory": w.memory,
            "config": w.config, "devices": w.devices, "on_exit": w.on_exit, "on_event": w.on_event,
            "wiring": w, "state": w.state(spec.name),
            "irq": w.line(spec.irq) if spec.irq is not None else NoIrq(),
        }  # fmt: skip
        arguments = _arguments(factory, resources, called)
        if resources["state"] is not None and "state" not in arguments:
            raise UsageError(
                f"{called} cannot be restored: its constructor takes no state",
                hint="give it a parameter state=None (docs/devices.md)",
            )
        try:
            device = factory(**arguments)
        except VmmsimError:
            raise
        except Exception as error:
            raise UsageError(
                f"{called} cannot be made: its constructor raised {type(error).__name__}: {error}",
                hint="the error is in the device's class",
            ) from error
        for face in faces:
            _check_device(getattr(device, face, None) if face else device, called, face)
        return device

    return make


def _imported(path: str) -> Any:
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise UsageError(f"'{path}' does not name a class", hint="write module:Class, as in mymod:MySerial")
    try:
        with _cwd_first():
            found: Any = import_module(module)
    except Exception as error:
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UsageError(
            f"the device '{path}' cannot be imported: {what}",
            hint="modules are looked for in the current directory and on PYTHONPATH",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            raise UsageError(
                f"'{module}' has no '{attribute}'",
                hint=f"did you mean '{near[0]}'?" if near else "name a class of that module",
            )
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _cwd_first() -> Any:
    """A console script does not look in the current directory, as `python -m` does."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove("")


def _arguments(factory: Callable[..., Any], resources: dict[str, Any], called: str) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return {}
    arguments = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in resources:
            arguments[parameter.name] = resources[parameter.name]
        elif parameter.default is parameter.empty:
            raise UsageError(
                f"{called} asks for '{parameter.name}', which a machine does not give to a device",
                hint="it gives: " + ", ".join(sorted(resources)),
            )
    return arguments


def _check_device(device: Any, called: str, face: str) -> None:
    what = f"{called}.{face}" if face else called
    for member in ("widths", "read", "write"):
        if not hasattr(device, member):
            raise UsageError(f"{what} is no device: it has no {member}", hint="see docs/devices.md")
