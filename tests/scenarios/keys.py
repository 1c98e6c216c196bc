"""What tests need to ask the controller by HTTP."""

from __future__ import annotations

from kvshare.config.settings import Settings
from kvshare.contract import bearer_of
from tests.conftest import ROOT


def controllers_token() -> str | None:
    """What it asks for: of the key that `kvshare up` has made in this checkout."""
    key = Settings(ROOT, {}).cluster_key
    return bearer_of(key) if key else None
