"""What the library costs, measured against the same work without it: `./dev bench`.

Never shipped. Reading order: `load` (whose CPU time it was), `measuring` (floor and candidate,
interleaved), then one file a bench (`write_path`, `relay`, `sagas`), `report` and `plots`.

An absolute figure belongs to the machine it was taken on. What travels is a *ratio*: candidate
and floor in one run, one after the other, on the same server.
"""
