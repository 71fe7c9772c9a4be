"""A companion to SynFlow."""
