"""Frozen dataclasses to JSON and back, so that evidence can cross from the client container and be saved."""

from __future__ import annotations

import dataclasses
import json
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def dumps(record: Any, indent: int | None = None) -> str:
    """Return the JSON text of a dataclass."""
    return json.dumps(dataclasses.asdict(record), indent=indent)


def loads(cls: type[T], text: str) -> T:
    """Return the ``cls`` that :func:`dumps` wrote; ValueError names the field that does not fit."""
    return cls_from(cls, json.loads(text))


def cls_from(cls: type[T], data: Any) -> T:
    """Return a ``cls`` from plain JSON data; ValueError names the field that does not fit."""
    value: T = _build(cls, data, cls.__name__)
    return value


def _build(kind: Any, data: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if data is None else _build(inner, data, path)
    if origin is tuple:
        _require(data, list, path)
        if len(arguments) == 2 and arguments[1] is ...:
            return tuple(_build(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(data))
        if len(arguments) != len(data):
            raise ValueError(f"{path}: expected {len(arguments)} items, found {len(data)}")
        return tuple(_build(k, item, path) for k, item in zip(arguments, data, strict=True))
    if origin is dict:
        _require(data, dict, path)
        return {key: _build(arguments[1], value, f"{path}.{key}") for key, value in data.items()}
    if kind is Any:
        return data
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    _require(data, kind, path)
    return data


def _record(kind: Any, data: Any, path: str) -> Any:
    _require(data, dict, path)
    hints = get_type_hints(kind)
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := required - data.keys():
        raise ValueError(f"{path}: {', '.join(sorted(missing))} is missing")
    if unknown := data.keys() - hints.keys():
        raise ValueError(f"{path}: {', '.join(sorted(unknown))} is unknown")
    return kind(**{name: _build(hints[name], value, f"{path}.{name}") for name, value in data.items()})


def _require(data: Any, kind: type, path: str) -> None:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise ValueError(f"{path}: expected {kind.__name__}, found {type(data).__name__}")
