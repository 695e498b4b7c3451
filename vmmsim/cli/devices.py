"""`vmmsim devices`: what a machine has, and at which addresses."""

from __future__ import annotations

import click

from .common import json_option
from .show import table

__all__ = ["command"]


@click.command("devices")
@click.option("--model", metavar="NAME", help="Only the devices of this machine model.")
@json_option
def command(model: str | None, as_json: bool) -> None:
    """List the devices: their addresses, interrupt lines, and the models that have them."""
    from .. import models
    from ..config import MachineConfig

    chosen = models.names(MachineConfig(model=model)) if model is not None else list(models.DEVICES)
    rows = []
    for name in chosen:
        spec = models.DEVICES[name]
        rows.append(
            {
                "name": name,
                "space": spec.space,
                "start": spec.start,
                "length": spec.length,
                "irq": spec.irq,
                "models": [m for m, devices in models.MODELS.items() if name in devices],
                "about": spec.about,
            }
        )
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(rows))
        return
    lines = []
    for row in rows:
        digits = 4 if row["space"] == "port" else 8
        first, last = row["start"], row["start"] + row["length"] - 1
        where = f"{first:#0{2 + digits}x}" + (f"-{last:#0{2 + digits}x}" if last > first else "")
        irq = "" if row["irq"] is None else str(row["irq"])
        lines.append(
            (row["name"], row["space"], where, irq, ", ".join(row["models"]) or "--device", row["about"])
        )
    table(("device", "bus", "addresses", "irq", "model", "what it does"), lines)
