#!/usr/bin/env bash
# Question: which start address has an S-record file that GNU objcopy makes of data at 100h with the start at FFFF0h?
# Guess: an S8 or S7 record with FFFF0h: the record type is chosen so that the address fits.
# Really: S9 with FFF0h: the type goes by the data's addresses, and the start is cut to it with no warning.
#   --srec-forceS3 keeps it.
# Version: binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: firmware for debuggers and programmers that start at the address of the file
. "$(dirname "$0")/_lib.sh"
gnu_get
printf 'A' >data.bin
objcopy -I binary -O srec --change-section-address .data=0x100 --set-start 0xffff0 data.bin short.srec
objcopy -I binary -O srec --srec-forceS3 --change-section-address .data=0x100 --set-start 0xffff0 data.bin long.srec
{
    tr -d '\r' <short.srec | tail -1
    tr -d '\r' <long.srec | tail -1
} | see 'S903FFF00D
S705000FFFF0FC'
