#!/usr/bin/env bash
# Question: how large is a GPT partition of 1 MiB (2048 sectors), made by sfdisk, in dissect.volume?
# Guess: 1048576 bytes.
# Really: 1048064: the last LBA of an entry is inclusive (UEFI 2.10, 5.3.3) and is counted as the end. For an MBR partition
#   of the same size it says 1048576.
# Version: dissect.volume 3.18, fdisk 2.38.1-5+deb12u3 (Debian)
# Date: 2026-12-01
# Meets: tools that copy or hash a guest's partition: the last sector is missing (a backup boot sector, RAID or LUKS data)
. "$(dirname "$0")/_lib.sh"
pip_get dissect.volume==3.18
deb_here fdisk=2.38.1-5+deb12u3
for label in gpt dos; do
    truncate -s 64M $label.img
    echo "label: $label
size=1MiB" | sfdisk -q $label.img
done
py - <<'P' | see 'gpt [(1, 1048576, 1048064)]
dos [(1, 1048576, 1048576)]'
from dissect.volume.disk import Disk
for label in "gpt", "dos":
    with open(f"{label}.img", "rb") as image:
        print(label, [(part.number, part.offset, part.size) for part in Disk(image).partitions])
P
