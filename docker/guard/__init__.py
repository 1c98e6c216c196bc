"""Applies the series of patches in docker/patches under guard: every file is known, or nothing is written."""
