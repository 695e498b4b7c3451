#!/usr/bin/env bash
# Question: can dissect.hypervisor read the last sector of a sparse VMDK of 1 MiB and 512 bytes, made by qemu-img?
# Guess: yes, a disk of any number of sectors.
# Really: IndexError for the last sector, and for every read that reaches it, where the size is no multiple of 8 KiB (the
#   buffer of dissect.util's AlignedStream); 1 MiB is read whole.
# Version: dissect.hypervisor 3.21, dissect.util 3.24, qemu-utils 1:7.2+dfsg-7+deb12u18+b3 (Debian)
# Date: 2026-12-01
# Meets: forensic tools and importers of small or odd-sized disks
. "$(dirname "$0")/_lib.sh"
deb_here qemu-utils=1:7.2+dfsg-7+deb12u18+b3
pip_get dissect.hypervisor==3.21 dissect.util==3.24
qemu-img create -q -f vmdk even.vmdk 1048576
qemu-img create -q -f vmdk odd.vmdk 1049088
py - <<'P' | see 'even.vmdk 1048576 read 512
odd.vmdk 1049088 IndexError'
from dissect.hypervisor.disk.vmdk import VMDK
from pathlib import Path
for name in "even.vmdk", "odd.vmdk":
    disk = VMDK(Path(name))
    disk.seek(disk.size - 512)
    try:
        print(name, disk.size, "read", len(disk.read(512)))
    except IndexError as error:
        print(name, disk.size, type(error).__name__)
P
