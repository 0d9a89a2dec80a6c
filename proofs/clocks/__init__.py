"""Proof 3.6: workers whose own clocks are wrong."""
