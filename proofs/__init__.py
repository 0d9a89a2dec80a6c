"""Proofs of what the project promises, one module each: `./dev prove 1.4`.

Never shipped. Each proof measures, says what it measured, and passes or fails by a bar that is
written beside it in the words in which it was promised. See `registry` for how to add one.
"""
