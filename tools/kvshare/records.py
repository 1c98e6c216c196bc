"""Records to JSON and back, to be saved and to cross from the client container."""

import json
from threading import Lock
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_CONVERTING = Lock()  # msgspec 0.22.0 may crash where two threads are the first to meet a type


class Document(msgspec.Struct):
    """What a command writes for programs, as a schema under docs/ describes it."""


def one_of(*values: str | int) -> msgspec.Meta:
    """Return what a schema says of a field that takes these values and no others."""
    return msgspec.Meta(extra_json_schema={"enum": list(values)})


def dumps(record: Any, indent: int | None = None, allow_nan: bool = True) -> str:
    """Return the JSON text of a record; ValueError for what JSON has no number for, unless allowed."""
    return json.dumps(msgspec.to_builtins(record), indent=indent, allow_nan=allow_nan)


def loads(cls: type[T], text: str | bytes, ignore_unknown: bool = False) -> T:
    """Return the ``cls`` that :func:`dumps` wrote; ValueError names the field that does not fit."""
    return cls_from(cls, json.loads(text), ignore_unknown)


def cls_from(cls: type[T], data: Any, ignore_unknown: bool = False) -> T:
    """Return a ``cls`` from plain JSON data; ValueError names the field that does not fit, or is unknown."""
    try:
        with _CONVERTING:
            record = msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        raise ValueError(f"{cls.__name__}: {error}") from None
    if not ignore_unknown:
        _require_known(data, msgspec.to_builtins(record), cls.__name__)
    return record


def _require_known(given: Any, kept: Any, path: str) -> None:
    """ValueError for what the record did not keep: another version wrote it."""
    if isinstance(given, dict):
        if unknown := given.keys() - kept.keys():
            raise ValueError(f"{path}: {', '.join(sorted(unknown))} is unknown")
        for name, value in given.items():
            _require_known(value, kept[name], f"{path}.{name}")
    elif isinstance(given, list):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            _require_known(one, other, f"{path}[{number}]")
