"""Every SQL statement of ours, one function a verb, written once against a synchronous Connection.

Asynchronous code reaches them by `run_sync`. Differences between databases live in `dialects`;
time comes from the database through `clock`.
"""
