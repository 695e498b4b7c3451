#!/usr/bin/env bash
# Question: which names does dissect.fat list in a root directory with foo.txt, UP.TXT and a volume label?
# Guess: foo.txt and UP.TXT, as mdir and Linux show them; the label is no file.
# Really: FOO.TXT (the bits that say "8.3 name in lower case" are not looked at), UP.TXT, and LABEL as an entry of size 0.
# Version: dissect.fat 3.13, dosfstools 4.2-1, mtools 4.0.33-1+really4.0.32-1 (Debian)
# Date: 2026-12-01
# Meets: tools that look files up in EFI system partitions and on test floppies by name, or count them
. "$(dirname "$0")/_lib.sh"
pip_get dissect.fat==3.13
deb_get mkfs.fat dosfstools=4.2-1
deb_get mcopy mtools=4.0.33-1+really4.0.32-1
echo hi >foo.txt
echo hi >UP.TXT
mkfs.fat -C -n LABEL fat.img 1440 >/dev/null
mcopy -i fat.img foo.txt UP.TXT ::
{
    echo mdir $(mdir -b -i fat.img ::)
    py -c "
from dissect.fat import fat
with open('fat.img', 'rb') as image:
    print('dissect', *(entry.name for entry in fat.FATFS(image).root.iterdir()))"
} | see 'mdir ::/foo.txt ::/UP.TXT
dissect LABEL FOO.TXT UP.TXT'
