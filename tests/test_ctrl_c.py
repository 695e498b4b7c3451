"""Ctrl-C ends a spinning guest at once, in a process like the command line's."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from vmmsim.cpu.modes import setup
from vmmsim.machine import Machine

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")

#: What the issue promises.
PROMISED = 0.050

SPINS = {
    "jmp": "ebfe",  # l: jmp l
    "stores": "a20080ebfb",  # l: mov [0x8000], al; jmp l
    "string": "bf0080b9ff7ff3aaebf6",  # l: mov di, 0x8000; mov cx, 0x7fff; rep stosb; jmp l
    "exits": "e680ebfc",  # l: out 0x80, al; jmp l
}


@pytest.mark.parametrize("spin", SPINS)
def test_ctrl_c_stops_a_spinning_guest_within_50_ms(backend_name: str, spin: str) -> None:
    with Machine(backend=backend_name, memory=1 << 20) as machine:
        machine.memory.write(0x4000, bytes.fromhex(SPINS[spin]))
        machine.vcpu.set_state(setup("real", 0x4000, 1 << 20).state)
        best = 10.0
        for _ in range(5):
            sent: list[float] = []

            def press(sent: list[float] = sent) -> None:
                while not machine._running:  # on a busy host a key could come before the run
                    time.sleep(0.001)
                time.sleep(0.05)
                sent.append(time.perf_counter())
                os.kill(os.getpid(), signal.SIGINT)

            key = threading.Thread(target=press, daemon=True)
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the key may come from here on
                key.start()
                machine.run()
            best = min(best, time.perf_counter() - sent[0])
            key.join()

        # The best of five: a busy machine is late by itself.
        assert best <= PROMISED, f"{best * 1000:.1f} ms"
        assert 0x4000 <= machine.cpu.rip < 0x4010
