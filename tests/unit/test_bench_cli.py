"""`kvshare bench` from its command line, the client a process of its own, Docker left out."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvshare import cli, records
from kvshare.bench import gather, linkspeed, outputs, report, run
from kvshare.bench.results import Link
from kvshare.bench.run import Options, default_lengths, make_points
from kvshare.bench.spec import ARMS, LOADS, WAYS
from kvshare.config.settings import Settings
from kvshare.contract import Fingerprint, Hardware, Machine, Nic
from kvshare.errors import KvshareError
from kvshare.site import compose, containers
from kvshare.site.base import NONE, Started, State, Variables
from kvshare.site.containers import Containers
from kvshare.stack.members import Gateway, Member
from tests.unit.bench_build import document
from tests.unit.build import STACK
from tests.unit.fake_stack import FakeStack, serve

CONFIG = {
    "num_hidden_layers": 10, "num_attention_heads": 10, "num_key_value_heads": 5, "hidden_size": 640,
    "head_dim": 64, "intermediate_size": 2048, "vocab_size": 259,
}  # fmt: skip
PRINT = Fingerprint(
    "decode",
    model="/models/x",
    dtype="float32",
    max_model_len=1600,
    lmcache={"chunk_size": 256},
    ucx={"UCX_NET_DEVICES": "eth0"},
)
HARDWARE = Hardware(Machine("Some CPU", 2, None, "6.1"), Nic("eth0", "10000", "1500"))
IMPATIENT = (
    "from kvshare.servers import server, sharing, wait\nfrom kvshare.bench import session\n"
    "server.COUNTED_DEADLINE_S = sharing.EXPORT_DEADLINE_S = session.ADMISSION_DEADLINE_S = 0.05\n"
    "wait.POLL_S = 0.01\nfrom kvshare.cli import main\nmain(prog_name='kvshare')\n"
)


@dataclass(frozen=True)
class Printing:
    """A command that prints this."""

    text: str

    def answer(self, said: str, timeout_s: float) -> str:
        del said, timeout_s
        return self.text

    def first_line(self) -> str:
        return self.text

    def end(self) -> None:
        pass


class Site(Containers):
    """A site whose members answer what they should; its client is a process of its own."""

    def look(self) -> dict[str, State]:
        names = [member.name for member in self.stack.members]
        return {name: State(name, "running", image_id="sha256:0123") for name in names}

    def beside(self, member: Member, *command: str, environment: Variables = NONE) -> Started:
        del member, environment
        said = json.dumps(CONFIG) if command[0] == "sh" else records.dumps(HARDWARE)
        return nullcontext(Printing(said))

    def fingerprint(self, _: object) -> str:
        return records.dumps(PRINT)

    def log(self, _: object, whole: bool = False) -> str:
        del whole
        return ""


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeStack]:
    """The stand-in for the stack, behind the names that the operator's side finds its parts by."""
    fake = FakeStack()
    with serve(fake) as spec:
        urls = iter((spec.prefill, spec.decode, spec.controller, fake.gateway))
        hosts = [url.removeprefix("http://").split(":") for url in urls]
        (ph, pp), (dh, dp), (ch, cp), (gh, gp) = hosts
        found = replace(
            STACK,
            prefill=replace(STACK.prefill, host=ph, api_port=int(pp)),
            decodes=(replace(STACK.decode, host=dh, api_port=int(dp)),),
            controller=replace(STACK.controller, host=ch, http_port=int(cp)),
            gateway=Gateway("gateway", "gateway", "default", gh, int(gp)),
        )
        monkeypatch.setattr(run, "read_stack", lambda _: found)
        monkeypatch.setattr(run, "Containers", Site)
        monkeypatch.setattr(linkspeed, "measure", lambda *_: Link(2.0, "ucx_perftest"))

        def command(_: str, *arguments: str) -> list[str]:
            return [sys.executable, "-c", IMPATIENT, *arguments[arguments.index("bench-client") :]]

        monkeypatch.setattr(compose, "command", command)
        (tmp_path / ".env.example").write_text("DEVICE=cpu\nCOMPOSE_FILE=compose.yaml:compose.cpu.yaml\n")
        monkeypatch.setenv("KVSHARE_ROOT", str(tmp_path))
        yield fake


def bench(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.main, ["bench", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


QUICK = ("--prompt-tokens", "266,522,1034", "--output-tokens", "3", "--repetitions", "2")


def test_a_run_prints_a_table_and_writes_its_files(stack: FakeStack, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = bench(*QUICK, "--out", str(out), "--goodput", "ttft:1000")
    assert stack.prefill.transfers == 1 + 3 * 2
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        outputs.JSON, outputs.LINES, outputs.CSV, outputs.REPORT
    }  # fmt: skip
    found = outputs.load(out / outputs.JSON)
    assert found.ended == run.COMPLETE
    assert found.moved_tokens == 2 * (256 + 512 + 1024)
    assert found.model.kv_bytes_per_token == 25600
    assert [r.transfer.pulls for r in found.points if r.transfer] == [2, 2, 2]
    node = found.fingerprint.nodes["decode"]
    assert (node["model"], node["image_id"]) == (PRINT.model, "sha256:0123")
    assert (node["machine"]["cpu"], node["nic"]["mbit_per_s"]) == ("Some CPU", "10000")
    for arm in ARMS:
        assert f"\n{arm} " in result.stdout
    assert "KV transfer, by the owner's count: 2 of 50.0 ms" in result.stdout
    assert "% of the link" in result.stdout
    assert "link: 2.00 GB/s (ucx_perftest)" in result.stdout
    assert "goodput, peer:" in result.stdout
    assert "break-even" in result.stdout or "not worth it" in result.stdout
    assert "about" in result.stderr, "progress with the time left"


def test_no_byte_moved_is_exit_code_1(stack: FakeStack, tmp_path: Path) -> None:
    stack.pull_loop_alive = False
    result = bench(*QUICK, "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "Error: no byte moved in the peer arm: type make verify" in result.stderr
    assert outputs.load(tmp_path / "out" / outputs.JSON).points


def test_a_server_that_goes_down_half_way_is_exit_code_3_and_keeps_what_was_measured(
    stack: FakeStack, tmp_path: Path
) -> None:
    stack.decode.dies_after = 2 + 2 * 2 + 1
    result = bench(*QUICK, "--out", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert "decode went down during the run" in result.stderr
    assert "what was measured is kept" in result.stderr
    found = outputs.load(tmp_path / "out" / outputs.JSON)
    assert found.points[0].repetitions == 2


@pytest.mark.usefixtures("stack")
def test_a_calibration_writes_what_it_found_into_env(tmp_path: Path) -> None:
    result = bench(*QUICK, "--arms", "cold,peer,recompute", "--calibrate", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    line = (tmp_path / ".env").read_text()
    assert line.startswith("P2P_MIN_TOKENS=")
    assert "on a link of 2.00 GB/s" in line
    assert "kvshare: .env has P2P_MIN_TOKENS=" in result.stderr
    assert "type make up to apply it" in result.stderr


def test_a_calibration_that_saw_no_pull_writes_nothing(stack: FakeStack, tmp_path: Path) -> None:
    stack.pull_loop_alive = False
    result = bench(*QUICK, "--arms", "cold,peer,recompute", "--calibrate", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert not (tmp_path / ".env").exists()


def test_below_the_threshold_nothing_moves_and_that_is_right(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.decode.min_tokens = 2048
    monkeypatch.setitem(PRINT.lmcache, "p2p_min_tokens", 2048)
    result = bench(*QUICK, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert stack.prefill.transfers == 0
    assert result.stdout.count("peer: declined below 2,048 tokens (P2P_MIN_TOKENS=2048)") == 3
    refused = bench(*QUICK, "--calibrate")
    assert refused.exit_code == 2
    assert "decode runs with P2P_MIN_TOKENS=2048" in refused.stderr


def test_the_servers_api_key_goes_through_a_pipe(
    stack: FakeStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stack.api_key = "s3cret"
    refused = bench(*QUICK, "--arms", "cold", "--wait", "0", "--out", str(tmp_path / "out"))
    assert refused.exit_code == 3
    assert "wants an API key" in refused.stderr
    monkeypatch.setattr(Settings, "api_key", "s3cret")
    result = bench(*QUICK, "--arms", "cold", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "s3cret" not in result.output + (tmp_path / "out" / outputs.JSON).read_text()


@pytest.mark.parametrize("arms", ["cold", "cold,recompute"])
def test_arms_without_a_peer_need_no_transfer(stack: FakeStack, tmp_path: Path, arms: str) -> None:
    result = bench(*QUICK, "--arms", arms, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert stack.prefill.transfers == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--arms", "cold,per"), "per is no arm, did you mean peer?"),
        (("--prompt-tokens", "3082"), "a prompt of 3082 tokens and 16 to generate exceed MAX_MODEL_LEN=1600"),
        (("--prompt-tokens", "512"), "set --prompt-tokens to 522"),
        (("--prompt-tokens", "a"), "'a' is not numbers separated by commas"),
        (("--concurrency", "0"), "0 must be at least 1"),
        (("--shared", "101"), "101 must be at least 0 and at most 100"),
        (("--rate", "0"), "0 must be at least 0.001"),
        (("--goodput", "tfft:3"), "tfft is no limit, did you mean ttft?"),
        (("--goodput", "ttft:x"), "'x' is not milliseconds"),
        (("--node", "decode-9"), "--node decode-9 is no decode node, did you mean decode?"),
    ],
)
@pytest.mark.usefixtures("stack")
def test_bad_input_is_exit_code_2_and_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_server_of_another_model_is_named(stack: FakeStack) -> None:
    stack.decode.model = "other"
    result = bench(*QUICK)
    assert result.exit_code == 2
    assert "the client container refused the request" in result.stderr


def test_ctrl_c_keeps_what_was_measured(
    stack: FakeStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del stack
    seen: list[int] = []

    def interrupting(told: Callable[[Any], None]) -> Callable[[Any], None]:
        def tell(observed: Any) -> None:
            told(observed)
            seen.append(len(observed.repetitions))
            if len(observed.repetitions) == 3:
                raise KeyboardInterrupt

        return tell

    removed: list[str] = []
    monkeypatch.setattr(containers, "engine", lambda _: SimpleNamespace(remove=removed.append))
    monkeypatch.setattr(containers, "STOP_S", 0.1)
    original = gather.observe
    monkeypatch.setattr(gather, "observe", lambda site, spec, told: original(site, spec, interrupting(told)))
    result = bench(*QUICK, "--out", str(tmp_path / "out"))
    assert result.exit_code == 130
    assert "Error: interrupted by Ctrl-C; what was measured is kept." in result.stderr
    found = outputs.load(tmp_path / "out" / outputs.JSON)
    assert sum(r.repetitions for r in found.points) == 3
    (container,) = removed
    assert container.startswith("kvshare-bench-")


def test_the_client_ends_on_sigint_without_a_traceback() -> None:
    fake = FakeStack()
    fake.prefill.first_token_s = 0.3
    with serve(fake) as verify:
        spec = replace(
            run.make_spec(STACK, PRINT, run.Options(repetitions=5, seed=1)),
            prefill=verify.prefill, decode=verify.decode, controller=verify.controller,
        )  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "kvshare", "bench-client", "--spec", records.dumps(spec)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert "opening" in process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_default_lengths_suit_the_model() -> None:
    assert default_lengths(256, 1600, 16) == (266, 522, 1034, 1546)
    assert default_lengths(256, 131072, 128) == (2058, 4106, 8202, 16394, 32778)
    assert default_lengths(256, 600, 16) == (266, 522)


def test_a_calibration_measures_from_the_shortest_length_on() -> None:
    points = make_points(Options(calibrate=True), 256, 131072)
    assert [point.prompt_tokens for point in points] == [266, 522, 1034, 2058, 4106, 8202, 16394, 32778]


def test_two_runs_are_compared(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        path.write_text(records.dumps(document()))
    result = bench("compare", *map(str, paths))
    assert result.exit_code == 0
    assert result.stdout.count("within the spread") == 3 * 5 * 4
    paths[1].write_text("{}")
    refused = bench("compare", *map(str, paths))
    assert refused.exit_code == 2
    assert "b.json is no benchmark that this version wrote" in refused.stderr


def test_csv_has_a_line_for_each_point_and_arm() -> None:
    rows = list(csv.DictReader(outputs.as_csv(document()).splitlines()))
    assert len(rows) == 15
    assert {row["arm"] for row in rows} == set(ARMS)
    assert float(rows[0]["ttft_ms_p50"]) > 0


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_fetches_nothing_and_has_every_plot() -> None:
    page = report.html(document())
    for name in ("ttft", "stages", "speed", "tbt"):
        assert f'<figure id="{name}"><svg' in page
    assert "break-even, 348 tokens" in page
    assert "<script" not in page
    for address in ("http://", "https://"):
        fetched = [part.split('"')[0] for part in page.split(f'="{address}')[1:]]
        assert all("w3.org" in rest or "pygal.org" in rest for rest in fetched), fetched
    assert 'src="' not in page


def test_the_page_of_an_interrupted_run_leaves_out_what_is_not_there() -> None:
    page = report.html(replace(document(), points=(), cost=None))
    assert "<figure" not in page
    assert "<h1>Benchmark of " in page
    assert "None" not in page


def test_the_page_can_be_written_anew(tmp_path: Path) -> None:
    source, target = tmp_path / "a.json", tmp_path / "a.html"
    source.write_text(records.dumps(document()))
    assert bench("report", str(source), str(target)).exit_code == 0
    assert target.read_text() == report.html(document())


def test_words_from_outside_are_escaped() -> None:
    found = document()
    found = replace(found, model=replace(found.model, name="<script>alert(1)</script>"))
    assert "<script" not in report.html(found)


def test_the_gateway_is_compared_with_other_ways_to_the_same_servers(
    stack: FakeStack, tmp_path: Path
) -> None:
    stack.prefill.first_token_s = stack.decode.first_token_s = 0.002
    out = tmp_path / "out"
    quick = ("--prompt-tokens", "522", "--output-tokens", "3", "--repetitions", "2", "--requests", "8")
    result = bench("--through", "gateway", *quick, "--out", str(out))
    assert result.exit_code == 0, result.output
    found = outputs.load(out / outputs.JSON)
    assert [r.point.load for r in found.points] == list(LOADS)
    assert found.arms == WAYS
    assert found.moved_tokens == 2 * (
        16 * 512 + 4 * 256 + 512
    )  # of a conversation's turns four have one chunk
    assert [one.way for one in found.points[0].against] == ["round-robin", "one-server"]
    assert "gateway over round-robin: TTFT p50" in result.stdout
    assert found.verdict in result.stdout
    assert "TBT p99" in result.stdout
    assert "link" not in result.stdout
    lines = [json.loads(line) for line in (out / outputs.LINES).read_text().splitlines()]
    assert {line["load"] for line in lines} == set(LOADS)
    assert "the control" in (out / outputs.REPORT).read_text()


@pytest.mark.parametrize(
    "option", [("--arms", "cold"), ("--calibrate",), ("--node", "x"), ("--rate", "1"), ("--shared", "50")]
)
def test_options_of_arms_are_refused_beside_through(stack: FakeStack, option: tuple[str, ...]) -> None:
    del stack
    result = bench("--through", "gateway", *option)
    assert result.exit_code == 2
    assert f"{option[0]} is of arms and not of --through" in result.output


def test_a_stack_without_a_gateway_is_refused() -> None:
    with pytest.raises(KvshareError, match="this stack has no gateway"):
        run.make_spec(STACK, PRINT, Options(through="gateway"))
