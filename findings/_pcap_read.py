"""The times in a pcapng file as dpkt, scapy and python-pcapng see them."""

import logging

logging.disable(logging.CRITICAL)


def times(path):
    import dpkt
    from pcapng import FileScanner
    from scapy.utils import PcapNgReader

    with open(path, "rb") as data:
        yield "dpkt", [float(time) for time, _ in dpkt.pcapng.Reader(data)]
    with PcapNgReader(path) as reader:
        yield "scapy", [float(packet.time) for packet in reader]
    with open(path, "rb") as data:
        yield "python-pcapng", [block.timestamp for block in FileScanner(data) if hasattr(block, "timestamp")]
