"""From how many tokens on decode pulls: P2P_MIN_TOKENS, as a server that runs has it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAME = "P2P_MIN_TOKENS"
NEVER = "never"
VALUE = re.compile(rf"\d+|{NEVER}")


@dataclass(frozen=True)
class Threshold:
    """``tokens`` that a pull must bring to be made: 0 for any, None for none ever."""

    tokens: int | None = 0

    @property
    def is_set(self) -> bool:
        """Return whether there is any pull that is not made."""
        return self.tokens != 0

    @property
    def setting(self) -> str:
        """Return the value that a server is given."""
        return NEVER if self.tokens is None else str(self.tokens)

    @property
    def assignment(self) -> str:
        """Return it as `.env` has it."""
        return f"{NAME}={self.setting}"

    def declines(self, tokens: int) -> bool:
        """Return whether a pull of that many tokens is not made."""
        return self.tokens is None or tokens < self.tokens


PULL_ALWAYS = Threshold()


def of_server(lmcache: Mapping[str, Any]) -> Threshold:
    """Return the threshold in a server's LMCache settings, as its fingerprint has them."""
    value = lmcache.get("p2p_min_tokens", 0)
    return Threshold(None if value == NEVER else int(value))
