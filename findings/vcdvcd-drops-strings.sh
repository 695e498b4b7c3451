#!/usr/bin/env bash
# Question: what does vcdvcd say of a $var string in a dump that pyvcd writes?
# Guess: its values at their times, or an error: the s lines are an extension of GTKWave's that is not in IEEE 1364.
# Really: the signal is there, with its type, and has no values at all. pywellen reads them; pyDigitalWaveTools too, with the
#   blanks left as \x20, as pyvcd escapes them.
# Version: pyvcd 0.5.1, vcdvcd 2.6.0, pywellen 0.25.7, pyDigitalWaveTools 1.2
# Date: 2026-12-01
# Meets: tools that dump states and reasons as text beside the wires
. "$(dirname "$0")/_lib.sh"
pip_get pyvcd==0.5.1 vcdvcd==2.6.0 pywellen==0.25.7 pyDigitalWaveTools==1.2
py - <<'P' | see "vcdvcd string []
pywellen 'hlt now' 'out'
pyDigitalWaveTools [(0, 'hlt\\\\x20now'), (3, 'out')]"
from pyDigitalWaveTools.vcd.parser import VcdParser
from vcd import VCDWriter
from vcdvcd import VCDVCD
import pywellen
with open("w.vcd", "w") as out, VCDWriter(out, timescale="1 ns", date="now") as writer:
    why = writer.register_var("cpu", "why", "string")
    writer.change(why, 0, "hlt now")
    writer.change(why, 3, "out")
signal = VCDVCD("w.vcd")["cpu.why"]
print("vcdvcd", signal.var_type, signal.tv)
var = next(iter(pywellen.Waveform("w.vcd").all_vars()))
print("pywellen", *(repr(var.signal.value_at(at)) for at in (0, 3)))
parser = VcdParser()
parser.parse(open("w.vcd"))
print("pyDigitalWaveTools", parser.scope.toJson()["children"][0]["children"][0]["data"])
P
