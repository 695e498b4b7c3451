"""What `tools/hosts/windows` runs in a console of Windows: says which bytes the guest would get of each key.

    python tools/hosts/console_inside.py key|signal

`key`: Ctrl-c is a key, as of a PC, else a signal. It ends with the key q, or by Ctrl-c as a signal, and says
whether the console's modes were put back.
"""

from __future__ import annotations

import sys

from vmmsim.console.api import console
from vmmsim.streams.sources import open_stdin
from vmmsim.terminal import open_terminal

FDS = (0, 1, 2)


def main(ctrl_c: str) -> int:
    windows = console()
    assert windows is not None, "this is no Windows"
    before = [windows.mode(fd) for fd in FDS], windows.code_page()
    source = open_stdin(lambda data: data)
    terminal = open_terminal(keys=True, signals=ctrl_c == "signal")
    assert terminal is not None
    try:
        with terminal:
            print(f"raw {terminal.active} {type(source).__name__}", flush=True)
            while (byte := source.wait()) is not None and byte != ord("q"):
                print(f"<{byte:02x}>", flush=True)
    except KeyboardInterrupt:
        print("signal", flush=True)
    same = before == ([windows.mode(fd) for fd in FDS], windows.code_page())
    print("as before" if same else "other modes than before", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
