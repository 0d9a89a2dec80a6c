"""Proof 3.1: a saga of five steps of any kinds, and what may go wrong at each of them."""
