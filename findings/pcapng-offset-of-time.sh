#!/usr/bin/env bash
# Question: do the pcapng readers add if_tsoffset, the seconds to be added to each time of an interface?
# Guess: yes, all: without it the times are wrong.
# Really: dpkt adds it; scapy and python-pcapng do not, and say nothing.
# Version: dpkt 1.9.8, scapy 2.8.0, python-pcapng 2.1.1
# Date: 2026-12-01
# Meets: captures whose clock counts from boot or from a guest's start, as virtual time does
. "$(dirname "$0")/_lib.sh"
pip_get dpkt==1.9.8 scapy==2.8.0 python-pcapng==2.1.1
py - "$HERE" <<'P' | see 'dpkt [1700000005.0]
scapy [5.0]
python-pcapng [5.0]'
import sys
sys.path.insert(0, sys.argv[1])
from _pcap import interface, packet, section
from _pcap_read import times
with open("late.pcapng", "wb") as out:
    out.write(section() + interface(offset=1700000000) + packet(0, 5 * 10**6))
for name, seen in times("late.pcapng"):
    print(name, seen)
P
