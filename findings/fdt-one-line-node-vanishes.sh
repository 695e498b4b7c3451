#!/usr/bin/env bash
# Question: what does fdt.parse_dts make of a node that stands on one line, and of a property with a string and a cell?
# Guess: what dtc makes of them, or an error.
# Really: the node and all that follows it on its level are gone, with no error; <1> becomes the string "<1>".
# Version: fdt 0.3.3, device-tree-compiler 1.6.1-4+b1 (Debian)
# Date: 2026-12-01
# Meets: scripts that patch a device tree for a VM and do not have dtc
. "$(dirname "$0")/_lib.sh"
pip_get fdt==0.3.3
deb_get dtc device-tree-compiler=1.6.1-4+b1 libyaml-0-2=0.2.5-1
cat >t.dts <<'S'
/dts-v1/;
/ {
    first = "x", <1>;
    uart { reg = <1>; };
    timer {
        reg = <2>;
    };
};
S
{
    py -c 'import fdt; print(fdt.parse_dts(open("t.dts").read()).to_dts())'
    dtc -q -I dts -O dts t.dts
} | grep -v '^$' | tr -s '\t ' ' ' | see '/dts-v1/;
/ {
 first = "x", "<1>";
};
/dts-v1/;
/ {
 first = "x", <0x01>;
 uart {
 reg = <0x01>;
 };
 timer {
 reg = <0x02>;
 };
};'
