"""A debugger's view of a machine: the GDB remote protocol, and how a machine runs under it."""
