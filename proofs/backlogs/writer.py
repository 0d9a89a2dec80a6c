"""A service that adds events and never pauses: so many rows a transaction, one after the other.

`python -m proofs.backlogs.writer DATABASE_URL ROWS` until it is ended.
"""

from __future__ import annotations

import sys

from proofs.backlogs.filling import Place


def main() -> None:
    """Until SIGTERM."""
    url, rows = sys.argv[1:]
    place = Place("", url)
    with place.connect() as connection:
        while True:
            place.add(connection, int(rows))


if __name__ == "__main__":
    main()
