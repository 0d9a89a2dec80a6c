"""What scenarios of processes in peril share: relays that die or stand still at a chosen point.

`child` runs in a process of its own, `brood` starts and watches them, `load` writes, `ear` hears
every publication as it is made, `witness` sees who changes what without holding its lease.
"""
