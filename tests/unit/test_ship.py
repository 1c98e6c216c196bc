"""Images between engines: what goes where, that it arrives, and what is left when it does not."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kvshare import progress
from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.operate import ship
from kvshare.operate.ship import Shipment
from kvshare.site import images
from kvshare.site.contexts import Endpoint
from kvshare.site.engine import engine
from tests.conftest import ROOT
from tests.unit.build import STACK
from tests.unit.fake_docker import FakeDocker

SETTINGS = Settings(ROOT, {})
ENGINE, CLIENT = "kvshare/engine-cpu:0.1.0", "kvshare/client:0.1.0"
NAMES = {"controller": ENGINE, "prefill": ENGINE, "decode": ENGINE, "client": CLIENT}
EARLIER, LATER = "2026-11-24T07:00:00Z", "2026-11-24T09:00:00Z"


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `docker compose config` says of the images, without Compose."""

    def names(_settings: Settings, services: list[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(NAMES[service] for service in services))

    monkeypatch.setattr(images, "names", names)


def plan(node: str, source: str | None = None) -> list[tuple[str, str, str]]:
    shipments = ship.plan(SETTINGS, STACK, node, source)
    return [(shipment.image.name, shipment.source, shipment.target) for shipment in shipments]


def test_the_engine_image_goes_to_decode_and_the_client_stays_with_prefill(fake_docker: FakeDocker) -> None:
    for name in (ENGINE, CLIENT):
        fake_docker.add_image("default", name, "a")
    assert plan("decode") == plan("all") == [(ENGINE, "default", "gpu-b")]
    assert plan("prefill") == []


def test_both_go_to_prefill_from_where_they_are(fake_docker: FakeDocker) -> None:
    for name in (ENGINE, CLIENT):
        fake_docker.add_image("gpu-b", name, "a")
    assert plan("all") == [(ENGINE, "gpu-b", "default"), (CLIENT, "gpu-b", "default")]


def test_nothing_goes_where_the_same_image_is(fake_docker: FakeDocker) -> None:
    for context in ("default", "gpu-b"):
        fake_docker.add_image(context, ENGINE, "a")
    assert plan("decode") == []
    assert plan("decode", source="default") == []


def test_another_store_gives_the_same_image_another_id(fake_docker: FakeDocker) -> None:
    fake_docker.add_image("default", ENGINE, "a")
    here = images.find("default", ENGINE)
    assert here is not None
    assert here.is_same_as(replace(here, id="sha256:index"))
    assert not here.is_same_as(replace(here, id="sha256:index", content="other"))
    assert not here.is_same_as(None)


def test_an_older_image_is_replaced_and_that_is_said(fake_docker: FakeDocker) -> None:
    fake_docker.add_image("default", ENGINE, "a", LATER)
    fake_docker.add_image("gpu-b", ENGINE, "b", EARLIER)
    (shipment,) = ship.plan(SETTINGS, STACK, "decode", None)
    assert shipment.sentence == (
        f"{ENGINE} (aaaaaaaaaaaa, 1.3 MB, built 2026-11-24T09:00) goes from context default to "
        "context gpu-b, in place of bbbbbbbbbbbb (built 2026-11-24T07:00)"
    )


def test_a_newer_image_is_not_replaced_unasked(fake_docker: FakeDocker) -> None:
    fake_docker.add_image("default", ENGINE, "a", EARLIER)
    fake_docker.add_image("gpu-b", ENGINE, "b", LATER)
    with pytest.raises(KvshareError, match=r'gpu-b has a newer .* than context default .* default" or'):
        plan("decode")
    assert plan("decode", source="default") == [(ENGINE, "default", "gpu-b")]


def test_no_image_anywhere(fake_docker: FakeDocker) -> None:
    del fake_docker
    with pytest.raises(KvshareError, match=f"no context has the image {ENGINE}: type make image") as refusal:
        plan("decode")
    assert refusal.value.exit_code == 2


def test_the_chosen_source_has_none(fake_docker: FakeDocker) -> None:
    fake_docker.add_image("gpu-b", ENGINE, "a")
    with pytest.raises(KvshareError, match=f"context default has no image {ENGINE}"):
        plan("decode", source="default")


def test_the_chosen_source_is_no_context(fake_docker: FakeDocker) -> None:
    del fake_docker
    with pytest.raises(KvshareError, match="Docker has no context gpu-x") as refusal:
        plan("decode", source="gpu-x")
    assert refusal.value.exit_code == 2


def test_an_engine_that_does_not_answer_is_exit_3(fake_docker: FakeDocker) -> None:
    fake_docker.add_image("default", ENGINE, "a")
    fake_docker.engine("gpu-b", "down")
    with pytest.raises(CouldNotCheckError, match="context gpu-b: no Docker engine answers"):
        plan("decode")


def test_a_local_engine_that_does_not_answer_is_passed_over(fake_docker: FakeDocker) -> None:
    fake_docker.engine("default", "down")
    fake_docker.engine("gpu-a")
    fake_docker.add_image("gpu-a", ENGINE, "a")
    elsewhere = replace(STACK, prefill=replace(STACK.prefill, context="gpu-a"))
    source, _ = images.source_of(ENGINE, elsewhere, ("gpu-b",), None)
    assert source == "gpu-a"


# Shipping


def shipment(fake_docker: FakeDocker) -> Shipment:
    fake_docker.add_image("default", ENGINE, "a")
    (planned,) = ship.plan(SETTINGS, STACK, "decode", None)
    return planned


def test_it_arrives_and_is_compared(fake_docker: FakeDocker, capsys: pytest.CaptureFixture[str]) -> None:
    fake_docker.add_image("default", ENGINE, "a")
    ship.run(SETTINGS, STACK, "decode", None)
    assert fake_docker.image_ids("gpu-b") == fake_docker.image_ids("default")
    narrated = capsys.readouterr().err.splitlines()
    assert narrated[0].startswith(f"kvshare: {ENGINE} (aaaaaaaaaaaa, ")
    assert narrated[-1].startswith(f"√ Ship {ENGINE} to context gpu-b (1.3 MB in ")
    ship.run(SETTINGS, STACK, "decode", None)
    assert "nothing to ship" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("context", "fault", "sentence"),
    [
        ("default", "cut-save", "context default: docker save of .* failed: no Docker engine answers"),
        ("gpu-b", "full-disk", "context gpu-b: docker load of .* failed: .*no space left on device"),
    ],
)
def test_what_stops_it_is_said_and_nothing_is_left(
    context: str, fault: str, sentence: str, fake_docker: FakeDocker
) -> None:
    planned = shipment(fake_docker)
    fake_docker.engine(context, fault)
    with pytest.raises(KvshareError, match=sentence) as refusal:
        ship.ship(planned)
    assert "\n" not in refusal.value.message
    assert fake_docker.image_ids("gpu-b") == {}


def test_another_image_than_was_sent_is_noticed(fake_docker: FakeDocker) -> None:
    planned = shipment(fake_docker)
    other = replace(planned, image=replace(planned.image, id="sha256:" + "f" * 64, content="other"))
    with pytest.raises(CouldNotCheckError, match=r"expected .* to be ffffffffffff, found aaaaaaaaaaaa"):
        ship.ship(other)


def test_an_image_for_other_processors_is_refused_before_it_is_sent(fake_docker: FakeDocker) -> None:
    planned = shipment(fake_docker)
    other = replace(planned, image=replace(planned.image, architecture="arm64"))
    with pytest.raises(KvshareError, match="is built for arm64 and context gpu-b is amd64"):
        ship.ship(other)
    assert fake_docker.image_ids("gpu-b") == {}


def test_a_full_disk_is_named_before_anything_is_sent(
    fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = shipment(fake_docker)
    large = replace(planned, image=replace(planned.image, size_bytes=10**18))
    _ = engine("gpu-b").about()  # connected; from here on it counts as this machine's
    monkeypatch.setattr(Endpoint, "is_local", True)
    with pytest.raises(KvshareError, match="not enough disk in /: need"):
        ship.ship(large)
    assert fake_docker.image_ids("gpu-b") == {}


def test_ctrl_c_leaves_no_tag_and_no_process(fake_docker: FakeDocker) -> None:
    fake_docker.add_image("default", ENGINE, "a")
    fake_docker.engine("default", "slow-save")
    program = (
        "from kvshare.operate import ship\nfrom kvshare.site import images\n"
        "from tests.unit import test_ship\n"
        "images.names = lambda _, services: (test_ship.ENGINE,)\n"
        "ship.run(test_ship.SETTINGS, test_ship.STACK, 'decode', None)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=dict(os.environ), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "packs it" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert fake_docker.image_ids("gpu-b") == {}
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    assert not [command for command in commands if str(fake_docker.folder).encode() in command]


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


# Progress


def test_a_step_is_two_lines_where_there_is_no_terminal_and_news_on_one() -> None:
    plain, terminal = io.StringIO(), io.StringIO()
    for console in (Console(file=plain), Console(file=terminal, force_terminal=True, width=40)):
        with progress.step("Build [it]", console) as current:
            current.detail("compiling, which takes longer than a line")
    assert plain.getvalue().splitlines() == ["… Build [it]", "√ Build [it] (0 s)"]
    assert "Build [it] · 0 s · compiling, which" in terminal.getvalue()
    assert terminal.getvalue().endswith("√ Build [it] (0 s)\n")


def test_a_transfer_is_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_TRANSFER_INTERVAL_S", 0.0)
    stream = io.StringIO()
    with progress.transfer("Ship it", 4_000_000, Console(file=stream)) as current:
        current.advance(1_000_000)
        time.sleep(0.01)
        current.advance(1_000_000)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "… Ship it · about 4.0 MB"
    assert "2.0 MB of about 4.0 MB, " in lines[2]
    assert "/s, about " in lines[2]
    assert lines[-1] == "√ Ship it (2.0 MB in 0 s)"


def test_a_transfer_is_a_bar_on_a_terminal() -> None:
    stream = io.StringIO()
    with progress.transfer(
        "Ship it", 4_000_000, Console(file=stream, force_terminal=True, width=100)
    ) as current:
        current.advance(3_000_000)
        current.note("unpacking")
        time.sleep(0.3)
        current.advance(3_000_000)
    assert "3.0/4.0 MB" in stream.getvalue()
    assert "unpacking" in stream.getvalue()
    assert "√ Ship it (6.0 MB" in stream.getvalue()
