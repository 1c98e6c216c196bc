"""Behavioural probes: each exercises what a patch is for and raises ProbeError if it is not so."""


class ProbeError(Exception):
    """What was expected and what was found, in one sentence."""
