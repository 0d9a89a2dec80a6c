"""One module for each acceptance scenario, `sNN_<what>.py`, with a function `show() -> Outcome`.

A module is found by its name; nothing has to be registered. `world` has what most of them need:
a database, a broker, what was committed, and the check of both at rest.
"""
