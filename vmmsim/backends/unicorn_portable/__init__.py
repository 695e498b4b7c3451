"""Driving Unicorn by documented calls and the bytes of a context: on every host that it runs on."""
