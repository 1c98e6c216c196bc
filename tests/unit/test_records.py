"""Evidence survives its way through JSON, and what is no evidence is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshare import records
from kvshare.verify.evidence import Evidence, Spec
from tests.unit.build import SPEC, proven
from tests.unit.faults import FAULTS


@pytest.mark.parametrize(
    "evidence", [proven(), *(f.evidence for f in FAULTS.values())], ids=["proven", *FAULTS]
)
def test_evidence_comes_back_as_it_went(evidence: Evidence) -> None:
    assert records.loads(Evidence, records.dumps(evidence)) == evidence


@given(st.builds(Spec))
def test_any_spec_comes_back_as_it_went(spec: Spec) -> None:
    assert records.loads(Spec, records.dumps(spec)) == spec or spec != spec  # NaN is equal to nothing


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompts": "three"}, r"Spec: Expected `int`, got `str` - at `\$\.prompts`"),
        ({"prompts": True}, r"Spec: Expected `int`, got `bool` - at `\$\.prompts`"),
        ({"colour": 1}, "Spec: colour is unknown"),
        ({"prompts": None}, r"Spec: Expected `int`, got `null` - at `\$\.prompts`"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], sentence: str) -> None:
    data = {**json.loads(records.dumps(SPEC)), **change}
    with pytest.raises(ValueError, match=sentence):
        records.cls_from(Spec, data)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="Spec: Object missing required field `prefill`"):
        records.loads(Spec, "{}")


def test_what_is_unknown_is_named_wherever_it_stands_unless_it_may_be_newer() -> None:
    data = json.loads(records.dumps(proven()))
    data["traffic"]["legs"][0]["colour"] = 1
    with pytest.raises(ValueError, match=r"Evidence\.traffic\.legs\[0\]: colour is unknown"):
        records.cls_from(Evidence, data)
    assert records.cls_from(Evidence, data, ignore_unknown=True) == proven()


def test_tuples_of_fixed_length_keep_it() -> None:
    data = json.loads(records.dumps(proven()))
    data["traffic"]["legs"][0]["output"][0]["top"][0].append(1)
    with pytest.raises(
        ValueError,
        match=r"`array` of length 2, got 3 - at `\$\.traffic\.legs\[0\]\.output\[0\]\.top",
    ):
        records.cls_from(Evidence, data)


# Types that nobody has met yet, each by four threads at once.
AT_ONCE = """
import sys, threading
from dataclasses import field, make_dataclass
from kvshare import records
sys.setswitchinterval(1e-6)
for number in range(100):
    inner = make_dataclass(f"Inner{number}", [(f"x{i}", int, field(default=0)) for i in range(20)])
    outer = make_dataclass("Outer", [(f"y{i}", inner) for i in range(5)])
    text = records.dumps(outer(*(inner() for _ in range(5))))
    ready = threading.Barrier(4)
    threads = [threading.Thread(target=lambda: (ready.wait(), records.loads(outer, text))) for _ in range(4)]
    for each in threads: each.start()
    for each in threads: each.join()
"""


def test_threads_that_are_the_first_to_read_a_type_read_it() -> None:
    subprocess.run([sys.executable, "-c", AT_ONCE], check=True)
