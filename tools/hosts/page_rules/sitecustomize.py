"""Python begins with the rules of VMMSIM_HOST_PAGE, where this folder is in PYTHONPATH. See page_rules.py."""

import os

from page_rules import rules

if "VMMSIM_HOST_PAGE" in os.environ:
    _rules = rules(int(os.environ["VMMSIM_HOST_PAGE"]))
    _rules.__enter__()
