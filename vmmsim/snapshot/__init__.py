"""Snapshots as values and files; nothing here knows a running machine."""
