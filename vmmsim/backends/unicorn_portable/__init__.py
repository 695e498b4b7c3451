"""Driving Unicorn by its documented API only: on every host that the unicorn package runs on."""
