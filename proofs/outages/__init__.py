"""A broker that is away, and messages it never takes, in front of a real relay process."""
