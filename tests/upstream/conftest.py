"""Where LMCache is not installed, the only test is the one that runs the others where it is."""

from __future__ import annotations

import importlib.util

HAS_LMCACHE = importlib.util.find_spec("lmcache") is not None
collect_ignore_glob = ["test_in_image.py"] if HAS_LMCACHE else ["test_[!i]*.py"]
