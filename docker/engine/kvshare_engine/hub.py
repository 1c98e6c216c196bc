"""What the Hugging Face hub says of a model that is not here: whether it gives it, and its config.json."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from kvshare.contract import DEMO_MODEL, Hub

HUB = "https://huggingface.co"
TIMEOUT_S = 5.0
CONFIG_BYTES = 1 << 20


class OnThisHost(urllib.request.HTTPRedirectHandler):
    """Elsewhere a redirect is an answer; followed, it would take the token to another host."""

    def redirect_request(self, request: Any, answer: Any, code: int, said: str, fields: Any, to: str) -> Any:
        if urlsplit(to).netloc != urlsplit(request.full_url).netloc:
            return None
        return super().redirect_request(request, answer, code, said, fields, to)


def has(model: str) -> bool:
    """Whether a model of that name comes from the hub, and the hub may be asked."""
    named = model != DEMO_MODEL and not model.startswith("/")
    return named and os.environ.get("HF_HUB_OFFLINE") in (None, "", "0")


def ask(model: str, token: str, revision: str = "") -> tuple[Hub, dict[str, Any]]:
    """Ask for the model's config.json; nothing of it where the hub does not give it."""
    address = os.environ.get("HF_ENDPOINT") or HUB
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{address}/{model}/resolve/{revision or 'main'}/config.json"
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.build_opener(OnThisHost).open(request, timeout=TIMEOUT_S) as response:
            return Hub(address, bool(token), status=response.status), _config(response.read(CONFIG_BYTES))
    except urllib.error.HTTPError as error:
        return Hub(address, bool(token), status=error.code), {}
    except (OSError, ValueError) as error:
        return Hub(address, bool(token), error=str(getattr(error, "reason", error))), {}


def _config(body: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(body))
    except (ValueError, TypeError):
        return {}
