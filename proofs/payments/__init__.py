"""Proof 3.4: a payment whose outcome nobody knows."""
