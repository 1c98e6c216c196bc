"""`.env`, as Docker Compose reads it: quotes, escapes, `export`, comments; what has a $ is taken as it is."""

from pathlib import Path

from kvshare.errors import KvshareError


def read(path: Path) -> dict[str, str]:
    """Return a file's NAME=value lines; KvshareError names the first that is none."""
    from dotenv.parser import parse_stream  # here and below: the client image does without

    found = {}
    with path.open() as stream:
        for line in parse_stream(stream):
            if line.error or (line.key is not None and line.value is None):
                text = line.original.string.strip()
                raise KvshareError(f"{path.name} line {line.original.line} is no NAME=value: {text}")
            if line.key is not None and line.value is not None:
                found[line.key] = line.value
    return found


def write(root: Path, line: str) -> Path:
    """Put a NAME=value line into ``root``'s `.env`, in place of the one it has; return the file's path."""
    from dotenv import set_key

    path = root / ".env"
    path.touch()  # set_key keeps a file's mode, and makes new ones that nobody else can read
    name, _, value = line.partition("=")
    set_key(path, name, value, quote_mode="never")  # the value as it is, with the comment behind it
    return path
