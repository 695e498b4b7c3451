#!/usr/bin/env bash
# Question: where does sfdisk start the first partition of a 4 MiB and of a 5 MiB image, with nothing said?
# Guess: at sector 2048 (1 MiB) where that fits, as on every disk.
# Really: at sector 1 (DOS) or 34 (GPT) on the 4 MiB image: on such small disks nothing is aligned, and there is no gap after the
#   MBR in which GRUB's core image could lie. From 5 MiB on it is 2048.
# Version: fdisk 2.38.1-5+deb12u3 (Debian)
# Date: 2026-12-01
# Meets: makers of small test disks for VMMs, whose boot loader then does not install
. "$(dirname "$0")/_lib.sh"
deb_here fdisk=2.38.1-5+deb12u3
for size in 4M 5M; do
    for label in dos gpt; do
        rm -f disk.img
        truncate -s $size disk.img
        printf 'label: %s\n,\n' $label | sfdisk -q disk.img
        echo $size $label $(sfdisk -d disk.img | sed -n 's/.*start= *\([0-9]*\),.*/\1/p')
    done
done | see '4M dos 1
4M gpt 34
5M dos 2048
5M gpt 2048'
