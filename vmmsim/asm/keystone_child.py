"""Keystone in a process of its own: a request a line on stdin, its answer a line on stdout, as JSON.

`python -m vmmsim.asm.keystone_child`. Some malformed sources end keystone 0.9.2's process, or never come to
an end; then it is this one. No option is ever set: after that, decimal numbers would be hexadecimal ones.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Answer until stdin ends."""
    import keystone

    modes = {16: keystone.KS_MODE_16, 32: keystone.KS_MODE_32, 64: keystone.KS_MODE_64}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            engine = keystone.Ks(keystone.KS_ARCH_X86, modes[request["bits"]])
            code, _ = engine.asm(request["text"], request["address"], as_bytes=True)
            answer = {"code": bytes(code or b"").hex()}
        except keystone.KsError as error:
            missing = error.errno == keystone.KS_ERR_ASM_SYMBOL_MISSING
            answer = {"error": (str(error).splitlines() or ["unknown error"])[0], "missing": missing}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
