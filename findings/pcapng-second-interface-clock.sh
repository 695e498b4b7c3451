#!/usr/bin/env bash
# Question: which time has a packet of a pcapng file's second interface, in microseconds, when the first is in nanoseconds?
# Guess: its own interface's: if_tsresol is an option of each interface.
# Really: dpkt divides by the first interface's resolution for all of them: 1000 times too early, no error. scapy and
#   python-pcapng have it right.
# Version: dpkt 1.9.8, scapy 2.8.0, python-pcapng 2.1.1
# Date: 2026-12-01
# Meets: readers of captures of several virtual NICs, or of a NIC and a host bridge, in one file
. "$(dirname "$0")/_lib.sh"
pip_get dpkt==1.9.8 scapy==2.8.0 python-pcapng==2.1.1
py - "$HERE" <<'P' | see 'dpkt [1700000000.0, 1700000.0]
scapy [1700000000.0, 1700000000.0]
python-pcapng [1700000000.0, 1700000000.0]'
import sys
sys.path.insert(0, sys.argv[1])
from _pcap import interface, packet, section
from _pcap_read import times
with open("two.pcapng", "wb") as out:
    out.write(section() + interface(resolution=9) + interface(resolution=6))
    out.write(packet(0, 1700000000 * 10**9) + packet(1, 1700000000 * 10**6))
for name, seen in times("two.pcapng"):
    print(name, seen)
P
