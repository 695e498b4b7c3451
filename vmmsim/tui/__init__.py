"""`vmmsim step`: a guest gone through exit by exit, in the terminal.

`stepper` is what can be done, and knows no terminal; `app` shows it with textual, an extra.
"""
