"""`vmmsim devices`: what a machine has, and at which addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .common import json_option
from .output import out, table

if TYPE_CHECKING:
    from ..models import DeviceSpec

__all__ = ["command"]


@click.command("devices")
@click.option("--model", metavar="NAME", help="Only the devices of this machine model.")
@json_option
def command(model: str | None, as_json: bool) -> None:
    """List the devices: their addresses, interrupt lines, and the models that have them."""
    from .. import models
    from ..config import MachineConfig

    chosen = models.names(MachineConfig(model=model)) if model is not None else list(models.DEVICES)
    specs = [models.DEVICES[name] for name in chosen]
    having = {s.name: [m for m, devices in models.MODELS.items() if s.name in devices] for s in specs}
    if as_json:
        import msgspec

        keys = ("name", "space", "start", "length", "irq", "about")
        rows = [{k: getattr(s, k) for k in keys} | {"models": having[s.name]} for s in specs]
        out(msgspec.json.encode(rows))
        return
    table(
        ("device", "bus", "addresses", "irq", "model", "what it does"),
        [
            (s.name, s.space, _where(s), _irq(s), ", ".join(having[s.name]) or "--device", s.about)
            for s in specs
        ],
    )


def _where(spec: DeviceSpec) -> str:
    digits = 6 if spec.space == "port" else 10
    text = f"{spec.start:#0{digits}x}"
    return text if spec.length == 1 else f"{text}-{spec.start + spec.length - 1:#0{digits}x}"


def _irq(spec: DeviceSpec) -> str:
    return "" if spec.irq is None else str(spec.irq)
