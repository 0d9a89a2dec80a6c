"""Other outbox relays for Python, measured beside ours.

Each runs in an environment of its own under `.dev/peers`, made by `environments` with pinned
versions, as a process that `drained` times and `measure` talks to. Its script is
`<name>_drain.py`.
"""
