"""Actors for the explorer: relays as the product has them, writers, operators, and time."""
