"""Where Docker contexts lead, and what is said when they lead nowhere good."""

from __future__ import annotations

import pytest

from kvshare.site import contexts


@pytest.mark.parametrize(
    ("text", "numbers"), [("26.1.5+dfsg1", (26, 1, 5)), ("v0.13.1", (0, 13, 1)), ("dev", ())]
)
def test_versions_are_read_up_to_what_is_no_number(text: str, numbers: tuple[int, ...]) -> None:
    assert contexts.version_of(text) == numbers


def test_ssh_never_asks_on_the_terminal_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_ASKPASS", raising=False)
    monkeypatch.delenv("SSH_ASKPASS_REQUIRE", raising=False)
    assert contexts.quiet_ssh_environment()["SSH_ASKPASS_REQUIRE"] == "force"
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "prefer")
    assert contexts.quiet_ssh_environment()["SSH_ASKPASS_REQUIRE"] == "prefer"
