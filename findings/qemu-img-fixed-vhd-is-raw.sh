#!/usr/bin/env bash
# Question: what does qemu-img say of the fixed-size VHD that it has just written, with no format named?
# Guess: vpc, as of a dynamic one.
# Really: raw, and 512 bytes longer than the disk: a fixed VHD has its footer at the end only, where no probe looks. A
#   conversion without -f keeps the footer as the last sector of the disk.
# Version: qemu-utils 1:7.2+dfsg-7+deb12u18+b3 (Debian)
# Date: 2026-12-01
# Meets: scripts that move images from Azure or Hyper-V and leave the format to the probe
. "$(dirname "$0")/_lib.sh"
deb_here qemu-utils=1:7.2+dfsg-7+deb12u18+b3
truncate -s 2M disk.raw
for kind in dynamic fixed; do
    qemu-img convert -f raw -O vpc -o subformat=$kind,force_size=on disk.raw $kind.vhd
    echo "$kind: $(qemu-img info $kind.vhd | sed -n 's/^file format: //p') \
$(qemu-img info --output json $kind.vhd | sed -n 's/.*"virtual-size": \([0-9]*\).*/\1/p')"
done | see 'dynamic: vpc 2097152
fixed: raw 2097664'
