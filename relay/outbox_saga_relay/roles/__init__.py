"""Least-privilege roles: what each program of ours may do in the database, as SQL to run there.

`postgresql.sql` and `mysql.sql` are what counts: `script` fills in schema and prefix, `rights`
reads the GRANTs back for those who compare.
"""

from __future__ import annotations

from outbox_saga_relay.roles.rights import Rights, rights_of
from outbox_saga_relay.roles.script import DEFAULT_PREFIX, DIALECTS, ROLES, roles_sql

__all__ = ["DEFAULT_PREFIX", "DIALECTS", "ROLES", "Rights", "rights_of", "roles_sql"]
