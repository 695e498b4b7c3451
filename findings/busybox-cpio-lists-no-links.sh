#!/usr/bin/env bash
# Question: which names does busybox cpio -t list of a newc archive with a file of three hard links?
# Guess: all three, as GNU cpio does.
# Really: only the last, which carries the data; -i makes all three all the same. And GNU cpio had written the names in another
#   order than it was given: links come last, the first name of the file after the second.
# Version: busybox-static 1:1.35.0-4+deb12u1+b1, cpio 2.13+dfsg-7.1 (Debian)
# Date: 2026-12-01
# Meets: scripts that check what is in an initramfs from a rescue shell
. "$(dirname "$0")/_lib.sh"
deb_get busybox busybox-static=1:1.35.0-4+deb12u1+b1
deb_get cpio cpio=2.13+dfsg-7.1
mkdir in out
echo hello >in/a
ln in/a in/b
ln in/a in/c
(cd in && printf 'a\nb\nc\n' | cpio -o -H newc --quiet) >links.cpio
{
    echo GNU $(cpio -t --quiet <links.cpio)
    echo busybox $(busybox cpio -t <links.cpio 2>/dev/null)
    (cd out && busybox cpio -i <../links.cpio 2>/dev/null)
    echo made $(ls out)
} | see 'GNU b a c
busybox c
made a b c'
