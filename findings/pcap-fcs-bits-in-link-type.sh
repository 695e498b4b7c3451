#!/usr/bin/env bash
# Question: which link type has a pcap file with 14000001h in its header: Ethernet, with a 4-byte FCS on each packet?
# Guess: 1 (Ethernet): the upper bits are the FCS length, and readers mask them as libpcap does.
# Really: dpkt and scapy give 14000001h as it stands, and scapy then decodes no Ethernet.
# Version: dpkt 1.9.8, scapy 2.8.0
# Date: 2026-12-01
# Meets: captures from switches and emulated NICs that keep the frame check sequence
. "$(dirname "$0")/_lib.sh"
pip_get dpkt==1.9.8 scapy==2.8.0
py - "$HERE" <<'P' | see 'dpkt 0x14000001
scapy 0x14000001 Raw
without the bits: scapy 0x1 Ether'
import logging, sys
logging.disable(logging.CRITICAL)
sys.path.insert(0, sys.argv[1])
from _pcap import pcap
import dpkt
import scapy.layers.l2
from scapy.utils import PcapReader
for name, link in ("fcs", 0x14000001), ("plain", 1):
    open(name, "wb").write(pcap(link))
print("dpkt", hex(dpkt.pcap.Reader(open("fcs", "rb")).datalink()))
for name, text in ("fcs", "scapy"), ("plain", "without the bits: scapy"):
    reader = PcapReader(name)
    print(text, hex(reader.linktype), type(next(iter(reader))).__name__)
P
