"""Proof 3.9: acceptance scenarios of sagas that are no other proof's."""
