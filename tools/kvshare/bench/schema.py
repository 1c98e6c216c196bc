"""The JSON schema of a benchmark's document, from its dataclasses and their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from kvshare.bench.results import SCHEMA_VERSION, Document

_PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean"}


def schema() -> dict[str, Any]:
    """Return the schema, draft 2020-12."""
    definitions: dict[str, Any] = {}
    root = _of(Document, definitions)
    definitions["Document"]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bench.json of `make bench`",
        "description": "schema_version rises when a field changes its meaning or goes. Times in "
        "milliseconds where a name ends in _ms, in seconds where it ends in _s; GB/s of 10^9 bytes.",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        return _record(kind, definitions)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kinds = [_of(a, definitions) for a in arguments if a is not type(None)]
        return {"anyOf": [*kinds, {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    return {"type": "object"}


def _record(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}  # so that a record may hold itself
        hints = get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        definitions[name] = {
            "description": " ".join((inspect.getdoc(kind) or "").split()),
            "type": "object",
            "additionalProperties": False,
            "required": fields,
            "properties": {field: _of(hints[field], definitions) for field in fields},
        }
    return {"$ref": f"#/$defs/{name}"}
