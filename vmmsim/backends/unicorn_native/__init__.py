"""Driving Unicorn with more than its documented API, on some hosts (`host`).

All of it is here: four words of unnamed structures (`offsets`), exported symbols and machine
code (`thunks`). Nothing is used before it has proved itself in this process (`selftest`), and
before that in a child where it could crash (`trial`). Where that fails, or
VMMSIM_UNICORN=portable says so, `unicorn_portable` does the same by documented calls. The bytes
of a context, which both use, are `unicorn_context`'s.
"""
