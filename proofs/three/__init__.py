"""Proof 3.5: three services with a database each, and whoever kills what they run in."""
