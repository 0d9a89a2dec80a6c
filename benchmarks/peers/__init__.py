"""Other outbox relays and saga engines for Python, measured beside ours.

Each runs in an environment of its own under `.dev/peers`, made by `environments` with pinned
versions, as a process that `measure` talks to. Its script is `<name>_drain.py`, which `drained`
times, or `<name>_sagas.py`, which `carried` times.
"""
