"""What a person who knows QEMU's command line has written, and what does the same here."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["qemu_hint"]

#: Words of QEMU's command line, and what does the same here.
_HERE = {
    "append": "--append TEXT",
    "bios": "--bios FILE",
    "boot": "there are no disks to boot from; --kernel or --bios FILE",
    "cdrom": "there are no disks; an initial RAM disk is given with --initrd FILE",
    "cpu": "--backend kvm|unicorn chooses the CPU",
    "debugcon": "port E9h prints already",
    "display": "there is no screen; the guest's serial port is the terminal already",
    "drive": "there are no disks; an initial RAM disk is given with --initrd FILE",
    "enable-kvm": "--backend kvm",
    "accel": "--backend kvm|unicorn",
    "hda": "there are no disks; an initial RAM disk is given with --initrd FILE",
    "icount": "--clock insns",
    "initrd": "--initrd FILE",
    "kernel": "--kernel FILE",
    "machine": "--machine bare|pc",
    "monitor": "vmmsim has no monitor on the terminal; -s lets gdb in, which has one",
    "net": "there is no network",
    "netdev": "there is no network",
    "nic": "there is no network",
    "no-reboot": "a reset ends the run here anyway",
    "nographic": "there is no screen; the guest's serial port is the terminal already",
    "serial": "--serial stdio|none|file:PATH|pty",
    "smp": "--cpus N",
    "vga": "there is no screen; the guest's serial port is the terminal already",
}


def qemu_hint(arguments: Sequence[str], unknown: str) -> str:
    """What to write for a word of QEMU's: `-kernel`, of which click sees `-k` and other letters, or the
    option `unknown`, such as `--smp`."""
    for word in arguments:
        name = word.lstrip("-").partition("=")[0]
        single = word.startswith("-") and not word.startswith("--") and len(name) > 1
        if name in _HERE and (single or word.partition("=")[0] == unknown):
            return f"'{word}' is QEMU's; here: {_HERE[name]}"
    return ""
