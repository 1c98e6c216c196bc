"""The cluster's key: from its file to the containers, told apart without being told, and refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docker/engine"))

from kvshare_engine import cluster_key

KEY, ANOTHER = "5b" * 32, "6c" * 32


def settings(root: Path, text: str, mode: int = 0o600) -> Settings:
    (root / "key").write_text(text)
    (root / "key").chmod(mode)
    return Settings(root, {"CLUSTER_KEY_FILE": "key", "DEVICE": "cpu"})


def test_it_comes_from_its_file(tmp_path: Path) -> None:
    decisions = settings(tmp_path, f"{KEY}\n")
    assert decisions.compose_environment()["CLUSTER_KEY"] == KEY
    assert Settings(tmp_path, {}).compose_environment()["CLUSTER_KEY"] == ""


def test_where_none_is_named_it_is_the_one_that_up_made(tmp_path: Path) -> None:
    (tmp_path / ".kvshare").mkdir()
    made = tmp_path / ".kvshare/cluster.key"
    made.touch(0o600)
    made.write_text(KEY)
    assert Settings(tmp_path, {}).cluster_key == KEY
    assert Settings(tmp_path, {"CLUSTER_KEY": ANOTHER}).cluster_key == ANOTHER
    off = Settings(tmp_path, {"CLUSTER_KEY_FILE": "off", "CLUSTER_KEY": ANOTHER})
    assert off.compose_environment()["CLUSTER_KEY"] == ""
    made.chmod(0o644)
    with pytest.raises(KvshareError, match=r"=\.kvshare/cluster\.key can be read by others"):
        _ = Settings(tmp_path, {}).cluster_key


def test_with_another_key_every_container_is_another(tmp_path: Path) -> None:
    """Compose looks at no secret's content to see what has changed, but at labels."""

    def label(**decisions: str) -> str:
        return Settings(tmp_path, decisions).compose_environment()["KVSHARE_KEYS"]

    clusters = [label(CLUSTER_KEY=KEY), label(CLUSTER_KEY=ANOTHER)]
    labels = [*clusters, label(VLLM_API_KEY="a"), label(HF_TOKEN="a")]
    assert len({*labels}) == 4
    assert label(CLUSTER_KEY=KEY) == labels[0]
    assert label() == ""


def test_a_key_that_is_given_itself_is_looked_at_too(tmp_path: Path) -> None:
    with pytest.raises(KvshareError, match="CLUSTER_KEY must hold one key, 64 hexadecimal digits"):
        _ = Settings(tmp_path, {"CLUSTER_KEY": "s3cret"}).cluster_key


@pytest.mark.parametrize("text", ["", KEY[:-1], KEY[:-2], KEY + "00", KEY.replace("b", "g")])
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(KvshareError, match="CLUSTER_KEY_FILE=key must hold one key, 64 hexadecimal digits"):
        _ = settings(tmp_path, text).cluster_key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KvshareError, match=r"can be read by others than its owner: chmod 600 .*/key"):
        _ = settings(tmp_path, KEY, mode).cluster_key


def test_a_container_hands_lmcache_the_path_and_nothing_else(tmp_path: Path) -> None:
    secret = tmp_path / "cluster_key"
    assert cluster_key.environment(secret) == {}
    secret.write_text("")
    assert cluster_key.environment(secret) == {}, "as without a secret, which is /dev/null then"
    secret.write_text(f"{KEY}\n")
    assert cluster_key.environment(secret) == {"KVSHARE_CLUSTER_KEY_FILE": str(secret)}


def test_a_container_with_a_key_that_is_none_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cluster_key").write_text("secret")
    with pytest.raises(SystemExit):
        cluster_key.environment(tmp_path / "cluster_key")
    said = capsys.readouterr().err
    assert "64 hexadecimal digits, and found none" in said
    assert "secret" not in said


def test_what_the_controllers_http_asks_for_tells_nothing_of_the_key(tmp_path: Path) -> None:
    assert cluster_key.headers(tmp_path / "absent") == {}
    (tmp_path / "cluster_key").write_text(KEY)
    # printf 'kvshare http' | openssl dgst -sha256 -mac HMAC -macopt hexkey:KEY
    token = "c8e6c407c17dec410b9c13284bad66dee376b2fab594ceca46f4943a3b9e0915"  # pragma: allowlist secret
    assert cluster_key.headers(tmp_path / "cluster_key") == {"Authorization": f"Bearer {token}"}


def test_keys_are_told_apart_by_names_that_tell_nothing_of_them(tmp_path: Path) -> None:
    names = []
    for key in (KEY, ANOTHER, KEY):
        (tmp_path / "cluster_key").write_text(key)
        names.append(cluster_key.name({}, tmp_path / "cluster_key"))
    assert names[0] == names[2] != names[1]
    assert names[0] not in KEY
    assert cluster_key.name({}, tmp_path / "absent") == ""
