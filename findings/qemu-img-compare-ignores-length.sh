#!/usr/bin/env bash
# Question: what does qemu-img compare say of a disk of 1 MiB and one of 2 MiB, both all zeros?
# Guess: that they differ, exit code 1.
# Really: "Images are identical", exit code 0, with a warning: a longer tail of zeros counts as equal. -s (strict) makes it 1.
#   Documented in qemu-img's manual.
# Version: qemu-utils 1:7.2+dfsg-7+deb12u18+b3 (Debian)
# Date: 2026-12-01
# Meets: tests of disk back ends and of conversions, which a disk cut to half passes when its rest was zeros
. "$(dirname "$0")/_lib.sh"
deb_here qemu-utils=1:7.2+dfsg-7+deb12u18+b3
truncate -s 1M one
truncate -s 2M two
for strict in "" -s; do
    code=0
    qemu-img compare $strict -f raw -F raw one two >said || code=$?
    echo "compare${strict:+ $strict}: $(tail -1 said) exit code $code"
done | see 'compare: Images are identical. exit code 0
compare -s: Strict mode: Image size mismatch! exit code 1'
