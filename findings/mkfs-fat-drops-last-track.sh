#!/usr/bin/env bash
# Question: how many sectors has the volume that mkfs.fat -C makes of 300000 KiB, and of 65536 KiB?
# Guess: 600000 and 131072: twice the number given.
# Really: 599949 and 131072: the number is cut to a multiple of the sectors per track that it chooses (63 from 256 MiB on, 32
#   below that), which is said with -v only. The image keeps its size; the volume is smaller.
# Version: dosfstools 4.2-1 (Debian)
# Date: 2026-12-01
# Meets: makers of EFI system partitions and of test disks, and readers that expect volume and partition to be equal
. "$(dirname "$0")/_lib.sh"
deb_get mkfs.fat dosfstools=4.2-1
for size in 65536 300000; do
    rm -f fat.img
    mkfs.fat -C fat.img $size >/dev/null
    echo "$size KiB: image $(($(stat -c %s fat.img) / 512)), track $(od -An -tu2 -j24 -N2 fat.img | tr -d ' '), \
volume $(od -An -tu4 -j32 -N4 fat.img | tr -d ' ')"
done | see '65536 KiB: image 131072, track 32, volume 131072
300000 KiB: image 600000, track 63, volume 599949'
