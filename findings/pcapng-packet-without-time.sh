#!/usr/bin/env bash
# Question: which time do readers give a Simple Packet Block, which has none?
# Guess: None or 0, and the packet.
# Really: scapy gives the time at which the file is read, so that it differs from run to run; dpkt leaves the packet out.
# Version: dpkt 1.9.8, scapy 2.8.0
# Date: 2026-12-01
# Meets: small dumpers in firmware and emulators, for which the block was made
. "$(dirname "$0")/_lib.sh"
pip_get dpkt==1.9.8 scapy==2.8.0 python-pcapng==2.1.1
py - "$HERE" <<'P' | see 'dpkt 0 packets
scapy 1 packet, timed after this run began: True'
import sys, time
sys.path.insert(0, sys.argv[1])
from _pcap import interface, section, simple_packet
from _pcap_read import times
with open("simple.pcapng", "wb") as out:
    out.write(section() + interface() + simple_packet())
began = time.time()
seen = dict(zip(("dpkt", "scapy"), (found for _, found in times("simple.pcapng"))))
print("dpkt", len(seen["dpkt"]), "packets")
print("scapy", len(seen["scapy"]), "packet, timed after this run began:", seen["scapy"][0] >= began - 1)
P
