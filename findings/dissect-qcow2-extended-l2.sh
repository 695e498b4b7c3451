#!/usr/bin/env bash
# Question: can dissect.hypervisor read a qcow2 image with extended L2 entries (subclusters), which it has code for?
# Guess: yes, as QEMU does, or an error at the open that names the feature.
# Really: the open is fine and the size right; the read raises ValueError, "read length must be non-negative or -1". The same
#   disk without the feature is read whole.
# Version: dissect.hypervisor 3.21, qemu-utils 1:7.2+dfsg-7+deb12u18+b3 (Debian)
# Date: 2026-12-01
# Meets: importers and forensic tools for images made with extended_l2=on
. "$(dirname "$0")/_lib.sh"
deb_here qemu-utils=1:7.2+dfsg-7+deb12u18+b3
pip_get dissect.hypervisor==3.21
{
    head -c 65536 /dev/zero
    head -c 65536 /dev/zero | tr '\0' d
} >disk.raw
for extended in off on; do
    qemu-img convert -f raw -O qcow2 -o extended_l2=$extended,cluster_size=128k disk.raw $extended.qcow2
done
py - <<'P' | see 'off 131072 True
on 131072 ValueError'
from dissect.hypervisor.disk.qcow2 import QCow2
from pathlib import Path
for name in "off", "on":
    image = QCow2(Path(f"{name}.qcow2"))
    try:
        print(name, image.size, image.open().read() == Path("disk.raw").read_bytes())
    except ValueError as error:
        print(name, image.size, type(error).__name__)
P
