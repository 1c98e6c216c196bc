"""Build, start, stop, deliver and look at a stack."""
