"""Secrets out of text and JSON: whatever has a secret's name, its known values, and its shape.

Too much is removed rather than too little; but figures such as ``hit tokens: 1536`` stay, they are the point.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

REMOVED = "[removed]"
MINIMUM_KNOWN = 8  # a shorter value, replaced wherever it occurs, would leave holes in words

_HARD = {
    "secret", "secrets", "password", "passwords", "passwd", "passphrase", "pwd", "credential", "credentials",
    "apikey", "apikeys", "auth", "authorization", "cookie", "cookies", "signature", "sig", "jwt", "bearer",
}  # fmt: skip
# A number under such a name is a count, unless one of the kinds says that it is certainly a secret.
_SOFT = {"token", "tokens", "key", "keys", "accesstoken", "authtoken"}
_KINDS = {
    "api", "access", "private", "encryption", "signing", "master", "ssl", "tls", "ssh", "aws", "hf", "hub",
    "refresh", "session", "github", "gitlab", "openai",
}  # fmt: skip
_PLACES = {"file", "path", "dir", "folder"}
_PLACE_KEYS = {"environment", "external", "file", "mode", "name", "source", "target"}  # of Compose's secrets
_NO_SECRETS = {"PWD", "OLDPWD"}  # the working folder
_SOURCE = (".py", ".rs", ".go", ".cc", ".cpp", ".h")  # of a log line: token_database.py:88
_HEADERS = {"auth", "authorization", "cookie", "cookies"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# Every pattern below takes what it has begun, ended or not: linear in time, whatever a log holds.
_NAMED = re.compile(
    r"""
    (?<![\w.-]) (?: (?P<name> -{0,2}[A-Za-z_][\w.-]*) (?:\\*["'])? (?P<gap> [ \t]{0,3}[=:][ \t]{0,3})
                  | (?P<flag> -{1,2}[A-Za-z][\w.-]*) [ \t]+ )
    """,
    re.VERBOSE,
)
_VALUE = re.compile(
    r"""
    (?P<escape>\\+)(?P<mark>["']) (?:(?!(?P=escape)(?P=mark)).)* (?:(?P=escape)(?P=mark))?  # \"…\"
    | "(?:[^"\\\n]|\\.)*"? | '(?:[^'\\\n]|\\.)*'?                                           # quoted
    | [\w.]*[(\[{](?:"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|[^)\]}\n"'])*[)\]}]?   # SecretStr('…'), ['…']
    | [^\s]+
    """,
    re.VERBOSE,
)
_LINE = re.compile(r"[^\n]*")
_QUERY = re.compile(r"[^\s&#]*")
_NOTHING = re.compile(r"[\"']?(none|null|nil|true|false|\[removed\]|)[\"',;:.)}\]]*", re.IGNORECASE)
_FIGURE = r"[+-]?\d{1,9}(?:\.\d+)?(?:e[+-]?\d+)?"
_COUNT = re.compile(rf"[\"'\[]?(?:{_FIGURE}(?:, ?{_FIGURE})*)?[\"',;:.)}}\]]*")

_URL_USER = re.compile(r"(?<=://)(?P<user>[^\s/?#@]+)@(?=[\w\[])")
_QUERY_KEY = re.compile(r"(?<=[?&])key=")
_SHAPES = re.compile(
    r"""
    \b(?P<word>Bearer|Token)\s+(?=[^\s,;]*\d)[A-Za-z0-9._~+/=-]{8,}
    | \bhf_[A-Za-z0-9]{8,}                                   # Hugging Face
    | \b(?:sk|pk|rk)-[A-Za-z0-9_-]{8,}                       # OpenAI and its like
    | \bgh[pousr]_[A-Za-z0-9]{16,} | \bgithub_pat_\w{16,}
    | \bglpat-[\w-]{12,} | \bxox[abprs]-[\w-]{8,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{12,} | \bAIza[\w-]{20,}
    | \beyJ[\w-]{8,4000}\.[\w-]{8,4000}\.[\w-]*                   # a JSON web token
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _may_count(name: str) -> bool:
    """Whether a number under a secret's name is more likely a figure, such as the number of tokens."""
    return (_HARD | _KINDS).isdisjoint(_words(name))


def is_secret_name(name: str) -> bool:
    """Whether a variable or key of that name holds a secret; the path of a secret's file is none."""
    words = _words(name)
    if name in _NO_SECRETS or name.endswith(_SOURCE):
        return False
    return bool(words) and words[-1] not in _PLACES and not {*_HARD, *_SOFT}.isdisjoint(words)


def _is_secret_in_text(name: str, gap: str) -> bool:
    """The same within running text, where ``hit tokens: X`` and ``key: CacheEngineKey(…)`` are no secrets."""
    if not is_secret_name(name):
        return False
    words = _words(name)
    return not (len(words) == 1 and words[0] in {"key", "keys", "tokens"} and ":" in gap)


@dataclass(frozen=True)
class Redactor:
    """Removes secrets; ``known`` are the values that are secret wherever they occur."""

    known: tuple[str, ...] = ()

    @classmethod
    def knowing(cls, values: Iterable[str]) -> Self:
        """Return one that knows these values, also as JSON, URLs and base64 spell them."""
        spelt = set()
        for value in values:
            value = value.strip()
            if len(value) >= MINIMUM_KNOWN and not _COUNT.fullmatch(value):
                plain = base64.b64encode(value.encode()).decode()
                spelt |= {value, json.dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe=""), plain}
        return cls(tuple(sorted(spelt, key=len, reverse=True)))

    def text(self, text: str) -> str:
        """Return text, such as a log, without secrets."""
        for value in self.known:
            text = text.replace(value, REMOVED)
        text = _URL_USER.sub(_without_user, text)
        text = _SHAPES.sub(lambda match: f"{match['word']} {REMOVED}" if match["word"] else REMOVED, text)
        text = _QUERY_KEY.sub("api_key=", text)
        return _without_named(text)

    def data(self, data: Any) -> Any:
        """Return JSON data without secrets; what is no secret is as it was."""
        return self._value(data, secret=False, hard=False)

    def json(self, text: str) -> str:
        """Return a JSON document without secrets, indented; text that is no JSON as `text` returns it."""
        try:
            return json.dumps(self.data(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
        except ValueError:
            return self.text(text)

    def _value(self, data: Any, secret: bool, hard: bool) -> Any:
        if isinstance(data, dict):
            return {
                self.text(str(key)): self._entry(str(key), value, secret, hard) for key, value in data.items()
            }
        if isinstance(data, list):
            return self._list(data, secret, hard)
        if isinstance(data, str):
            return self._string(data, secret)
        if isinstance(data, bool) or data is None:
            return data
        return REMOVED if hard else data

    def _entry(self, key: str, value: Any, secret: bool, hard: bool) -> Any:
        if secret and key in _PLACE_KEYS:
            return self._value(value, secret=False, hard=False)
        named = is_secret_name(key)
        return self._value(value, secret or named, hard or (named and not _may_count(key)))

    def _list(self, items: list[Any], secret: bool, hard: bool) -> list[Any]:
        """A flag such as ``--api-key`` makes the next item a secret, as in a container's command."""
        kept, after_flag = [], False
        for item in items:
            flag = isinstance(item, str) and item.startswith("-")
            kept.append(self._value(item, secret or (after_flag and not flag), hard))
            after_flag = flag and "=" not in item and is_secret_name(item)
        return kept

    def _string(self, text: str, secret: bool) -> str:
        if secret:
            return text if _NOTHING.fullmatch(text) or text == "" else REMOVED
        name, equals, value = text.partition("=")
        if equals and value and re.fullmatch(r"-{0,2}[A-Za-z_][\w.-]*", name) and is_secret_name(name):
            keep = _NOTHING.fullmatch(value) or (_may_count(name) and _COUNT.fullmatch(value))
            return text if keep else f"{name}={REMOVED}"
        return self.text(text)


def _without_user(match: re.Match[str]) -> str:
    """A user's name alone is a secret over HTTP, where it may be a token, and none over ssh."""
    before = match.string[max(0, match.start() - 8) : match.start()].lower()
    if ":" not in match["user"] and not before.endswith(("http://", "https://")):
        return match[0]
    return f"{REMOVED}@"


def _without_named(text: str) -> str:
    kept, done = [], 0
    for match in _NAMED.finditer(text):
        name, gap = match["name"] or match["flag"], match["gap"] or ""
        if match.start() < done or not _is_secret_in_text(name, gap):
            continue
        word = _VALUE.match(text, match.end())
        if word is None or _stays(word[0], name, gap):
            continue
        kept += [text[done : match.end()], REMOVED]
        done = _end_of_value(text, match, word.end())
    return "".join([*kept, text[done:]])


def _end_of_value(text: str, match: re.Match[str], end_of_word: int) -> int:
    """Return where a secret value ends: with its word, its part of a URL's query, or its line."""
    before, first = text[match.start() - 1 : match.start()], text[match.end()]
    if before and before in "?&":
        found = _QUERY.match(text, match.end())
    elif first in "\"'\\[{" or match["flag"]:
        return end_of_word
    elif before in ("", "\n") or not _HEADERS.isdisjoint(_words(match["name"])):
        found = _LINE.match(text, match.end())  # a variable's, or a header's
    else:
        return end_of_word
    return found.end() if found else end_of_word


def _stays(value: str, name: str, gap: str) -> bool:
    """Whether a value says only that there is none, is a count, or is the flag after the flag."""
    return bool(
        _NOTHING.fullmatch(value)
        or (_may_count(name) and _COUNT.fullmatch(value))
        or (not gap and value.startswith("-"))
    )


def secret_values(variables: Mapping[str, str]) -> set[str]:
    """Return the values of those variables whose name says that they are secret."""
    return {value for name, value in variables.items() if value and is_secret_name(name)}
