"""The schemas under docs/ are those of the records, and of what the commands really write.

`make generate` writes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from kvshare import records
from kvshare.bench.results import Document
from kvshare.checking.document import Check
from kvshare.doctor import document as doctor
from kvshare.verify import document as verify
from tests.unit import bench_build, test_doctor_report, test_report

VERSIONS = "schema_version rises when a field changes its meaning or goes; new fields may come without it."
UNITS = (
    "schema_version rises when a field changes its meaning or goes. Times in milliseconds where a name "
    "ends in _ms, in seconds where it ends in _s; GB/s of 10^9 bytes."
)
DOCUMENTS: dict[str, tuple[str, str, tuple[type, ...]]] = {
    "verify": (
        "Report of `kvshare verify --output json`",
        f"One decode node gives a report, several an object with one report each. {VERSIONS}",
        (verify.Report, verify.Several),
    ),
    "doctor": ("Report of `kvshare doctor --output json`", VERSIONS, (doctor.Report,)),
    "bench": ("bench.json of `kvshare bench`", UNITS, (Document,)),
}
MAY_LACK = {one.name for one in msgspec.structs.fields(Check) if one.default is msgspec.UNSET}
RUNS = (
    *(("verify", name) for name in test_report.RUNS),
    *(("doctor", name) for name in test_doctor_report.RUNS),
)


def schema(title: str, description: str, kinds: tuple[type, ...]) -> dict[str, Any]:
    """The JSON schema of a document that is one of these kinds.

    What is declared is written, with a default or without, and nothing else; only a check may lack some.
    """
    roots, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    for record, described in definitions.items():
        fields, absent = described["properties"], MAY_LACK if record == "Check" else ()
        described["description"] = " ".join(described["description"].split())
        described["additionalProperties"] = False
        described["required"] = [name for name in fields if name not in absent]
        for one in fields.values():
            one.pop("default", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "description": description,
        **(roots[0] if len(roots) == 1 else {"oneOf": list(roots)}),
        "$defs": dict(sorted(definitions.items())),
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_schema_is_current(name: str, root: Path, update_golden: bool) -> None:
    text = json.dumps(schema(*DOCUMENTS[name]), indent=2) + "\n"
    path = root / f"docs/{name}.schema.json"
    if update_golden:
        path.write_text(text)
    assert path.read_text() == text, "make generate writes it"
    Draft202012Validator.check_schema(json.loads(text))


def written(command: str, run: str = "") -> str:
    """What a command writes as JSON."""
    if command == "bench":
        return records.dumps(bench_build.document(), indent=2) + "\n"
    if command == "verify":
        return test_report.rendered(test_report.RUNS[run], "json")
    return test_doctor_report.rendered(test_doctor_report.RUNS[run], "json")


def validator(name: str, root: Path) -> Draft202012Validator:
    return Draft202012Validator(json.loads((root / f"docs/{name}.schema.json").read_text()))


@pytest.mark.parametrize(("command", "run"), [*RUNS, ("bench", "")])
def test_what_a_command_writes_keeps_to_its_schema_and_comes_back_whole(
    command: str, run: str, root: Path
) -> None:
    text = written(command, run)
    validator(command, root).validate(json.loads(text))
    _, _, (kind, *_) = DOCUMENTS[command]
    assert json.loads(records.dumps(records.loads(kind, text))) == json.loads(text)


@pytest.mark.parametrize(
    ("command", "run", "path"),
    [
        ("verify", "corrupted-v", ()),
        ("verify", "corrupted-v", ("legs", 0)),
        ("verify", "corrupted-v", ("legs", 0, "sources")),
        ("verify", "corrupted-v", ("ledger",)),
        ("verify", "corrupted-v", ("ledger", "sources")),
        ("verify", "corrupted-v", ("fingerprints",)),
        ("verify", "corrupted-v", ("categories", 0)),
        ("doctor", "gpus", ()),
        ("doctor", "gpus", ("nodes", "decode")),
        ("doctor", "gpus", ("nodes", "decode", "ucx")),
        ("doctor", "gpus", ("links", 0, "meaning")),
        ("bench", "", ()),
        ("bench", "", ("points", 0, "arms", 0)),
        ("bench", "", ("threshold",)),
        ("bench", "", ("fingerprint",)),
    ],
)
def test_nothing_may_be_missing_and_nothing_unknown(
    command: str, run: str, path: tuple[str | int, ...], root: Path
) -> None:
    document = node = json.loads(written(command, run))
    for step in path:
        node = node[step]
    for name in tuple(node):
        value = node.pop(name)
        assert not validator(command, root).is_valid(document), name
        node[name] = value
    assert validator(command, root).is_valid(document)
    node["unknown"] = 1
    assert not validator(command, root).is_valid(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("exit",), 2),
        (("schema_version",), 2),
        (("legs", 0, "leg"), "third"),
        (("legs", 0, "tokens"), -1),
        (("worth", "verdict"), "perhaps"),
        (("categories", 0, "checks"), []),
        (("categories", 0, "checks", 0, "id"), "ENG-1"),
        (("categories", 0, "checks", 0, "result"), "error"),  # without what was expected and found
    ],
)
def test_values_are_those_that_the_docs_name(path: tuple[str | int, ...], value: object, root: Path) -> None:
    document = node = json.loads(written("verify", "proven"))
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    assert not validator("verify", root).is_valid(document)
