"""The README says in few words what a stranger needs, and what was run on what, when."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import RESULTS as CPU
from benchmarks.gpu import RESULTS as GPUS
from benchmarks.results import last, read
from tests.conftest import ROOT
from tests.scenarios.under_faults.figures import RESULTS as FAULTS

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
# What a generated page says of itself in its first lines.
GENERATED = re.compile(r"(?i)(?:made|written|generated) by `?(?:make|python|tools/)")


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"(?ms)^```.*?^```", "", text)


def test_it_has_at_most_800_words_outside_code() -> None:
    assert len(prose(README).split()) <= 800


def test_its_test_command_is_make_test() -> None:
    assert "`make test`" in README


@pytest.mark.parametrize(
    ("hardware", "path"),
    [
        ("no GPU", CPU),
        ("the same", FAULTS),
        ("NVIDIA H200", GPUS / "nvidia-h200.jsonl"),
        ("four NVIDIA H100", GPUS / "4x-nvidia-h100-80gb-hbm3.jsonl"),
        ("one NVIDIA H100", GPUS / "nvidia-h100-80gb-hbm3.jsonl"),
    ],
)
def test_it_says_when_each_hardware_was_run_last(hardware: str, path: Path) -> None:
    (row,) = (line for line in README.splitlines() if line.startswith("|") and hardware in line)
    assert f"| {last(read(path)).date} |" in row


def test_it_names_every_kind_of_gpu_that_was_run() -> None:
    for path in GPUS.glob("*.jsonl"):
        assert " ".join(last(read(path)).gpu.split()[:2]) in README


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(prose(page.read_text())):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_contributing_names_every_generated_page() -> None:
    for page in ROOT.glob("docs/*.md"):
        if GENERATED.search("\n".join(page.read_text().splitlines()[:20])):
            assert f"`docs/{page.name}`" in CONTRIBUTING
