"""The engine image's entrypoint outside an image: the same package, told where its files are.

usage: python -m kvshare.site.native_entry STATE_FOLDER ROOT PATCHES_RECORD controller|server
"""

import sys
from importlib import import_module
from pathlib import Path


def run(state: Path, root: Path, record: Path, role: str) -> int:
    """Run the entrypoint with a state folder of its own, instead of the paths that the image fixes."""
    _set(
        "environment",
        STATE_DIR=state,
        FINGERPRINT=state / "fingerprint.json",
        IDENTITY=state / "identity.json",
        METRICS_DIR=state / "metrics",
        NIXL_DIR=state / "nixl",
        LMCACHE_CONFIG=root / "configs" / "lmcache.yaml",
    )
    # After the paths above, which these modules take over when they are imported.
    _set("fingerprint", PATCHES=record)
    _set("models", VOLUME=state.parent / "models")
    code: int = import_module("kvshare_engine.__main__").main([role])
    return code


def _set(module: str, **values: Path) -> None:
    for name, value in values.items():
        target = import_module(f"kvshare_engine.{module}")
        if not hasattr(target, name):
            raise AttributeError(f"kvshare_engine.{module} has no {name} any more; adapt {__file__}")
        setattr(target, name, value)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
