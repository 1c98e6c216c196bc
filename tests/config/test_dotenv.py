"""The tool reads `.env` as Docker Compose does, which reads the same file when it is called by hand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from kvshare.config import dotenv

LINES = (
    "{}=1",
    "{} = 1",
    "export {}=1",
    "  export   {}=1",
    "{}=1 # why",
    "{}=1#2",
    "{}=#2",
    "{}=",
    '{}=""',
    '{}="a # b" # why',
    "{}='a # b'# why",
    '{}="a\\nb\\t\\"c\\""',
    "{}='a\\nb'",
    "{}='$HOME'",
    "{}=a\\nb",
    "{}=a'b\" c",
    "{}=b=c",
    '{}="two\nlines"',
    "{}=1\r",
    """{}=--lora-modules a=/models/a --hf-overrides '{{"a": 1}}' --x "y z\"""",
    "# {}=1",
    "{0}=1\n{0}=2",
)


def test_every_way_to_write_a_value_means_what_it_means_to_compose(tmp_path: Path) -> None:
    names = [f"NAME_{number}" for number in range(len(LINES))]
    lines = [line.format(name) for line, name in zip(LINES, names, strict=True)]
    (tmp_path / ".env").write_text("\n".join(lines) + "\n", newline="")
    labels = {name: f"${{{name}-not set}}" for name in names}
    (tmp_path / "compose.yaml").write_text(
        json.dumps({"services": {"any": {"image": "any", "labels": labels}}})
    )
    command = ["docker", "compose", "config", "--format", "json"]
    ran = subprocess.run(
        command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True, text=True
    )
    composes = json.loads(ran.stdout)["services"]["any"]["labels"]
    read = dict.fromkeys(names, "not set") | dotenv.read(tmp_path / ".env")
    assert read == {name: value.replace("$$", "$") for name, value in composes.items()}
