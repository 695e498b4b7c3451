#!/usr/bin/env bash
# Question: which values has the second of two $var lines with one identifier code (an alias, IEEE 1364, clause 18)?
# Guess: those of the first: it is one signal in two scopes.
# Really: none in pyDigitalWaveTools, with no error; vcdvcd and pywellen give both.
# Version: pyDigitalWaveTools 1.2, vcdvcd 2.6.0, pywellen 0.25.7
# Date: 2026-12-01
# Meets: dumps of simulators, in which a port and the wire on it share a code
. "$(dirname "$0")/_lib.sh"
pip_get vcdvcd==2.6.0 pywellen==0.25.7 pyDigitalWaveTools==1.2
cat >w.vcd <<'V'
$timescale 1 ns $end
$scope module top $end
$var wire 1 ! irq $end
$scope module cpu $end
$var wire 1 ! intr $end
$upscope $end
$upscope $end
$enddefinitions $end
#0
0!
#5
1!
V
py - <<'P' | see "pyDigitalWaveTools irq [(0, '0'), (5, '1')] intr []
vcdvcd irq [(0, '0'), (5, '1')] intr [(0, '0'), (5, '1')]
pywellen top.irq 0 1 top.cpu.intr 0 1"
from pyDigitalWaveTools.vcd.parser import VcdParser
from vcdvcd import VCDVCD
import pywellen
parser = VcdParser()
parser.parse(open("w.vcd"))
irq, cpu = parser.scope.toJson()["children"][0]["children"]
print("pyDigitalWaveTools", "irq", irq["data"], "intr", cpu["children"][0]["data"])
dump = VCDVCD("w.vcd")
print("vcdvcd", "irq", dump["top.irq"].tv, "intr", dump["top.cpu.intr"].tv)
found = ((var.full_name, var.signal.value_at(0), var.signal.value_at(5)) for var in pywellen.Waveform("w.vcd").all_vars())
print("pywellen", *(word for item in found for word in item))
P
