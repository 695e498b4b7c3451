"""The console of Windows: its keys one by one, as the bytes that a terminal sends, and its modes.

`keys` knows the keys, and `api` what is asked of Windows; `kernel32` has the calls.
"""
