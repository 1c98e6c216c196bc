"""Secrets go, whatever they stand in; figures stay."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshare import records
from kvshare.operate.redact import REMOVED, Redactor, is_secret_name, secret_values
from kvshare.verify.evidence import Evidence
from tests.unit.build import proven

SECRET = "s3cr3t-Value.99"
REDACTOR = Redactor()
PRINTABLE = "".join(map(chr, range(33, 127)))


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "hf_token", "VLLM_API_KEY", "apiKey", "api-key", "--api-key", "APIKEY", "access_token"),
        *(
            "password",
            "DB_PASSWORD",
            "passwd",
            "client_secret",
            "Authorization",
            "X-Api-Key",
            "key",
            "Cookie",
        ),
        *("AWS_SECRET_ACCESS_KEY", "X-Amz-Signature", "tls.key", "HUGGING_FACE_HUB_TOKEN", "authToken"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("PYTHONHASHSEED", "tokenizer", "HF_TOKEN_FILE", "keyboard", "KVSHARE_MODEL", "UCX_TLS", "monkey"),
        *("VLLM_API_KEY_FILE", "author", "PWD", "token_database.py", "secretary", "", "-"),
    ],
)
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "line",
    [
        f"HF_TOKEN={SECRET}",
        f"2026-11-24 INFO: HF_TOKEN={SECRET}, next=1",
        f"export API_KEY='{SECRET}'",
        "PASSWORD=two words " + SECRET,
        f"api_key: {SECRET}",
        f"API key: see below, api-key={SECRET}",
        f"args: Namespace(host='0.0.0.0', api_key=['{SECRET}'], port=8010)",
        f"args: {{'api_key': '{SECRET}', 'port': 8010}}",
        f"SecretStr: api_key=SecretStr('{SECRET}')",
        f"vllm serve model --api-key {SECRET} --port 8010",
        f"vllm serve model --api-key={SECRET} --port 8010",
        f"Authorization: Bearer {SECRET}",
        f"'Authorization': 'Bearer {SECRET}'",
        f"> authorization: Basic {base64.b64encode(SECRET.encode()).decode()} {SECRET}",
        f"Proxy-Authorization: Digest username=x, response={SECRET}",
        f"Cookie: a=1; session={SECRET}",
        f"sent Bearer {SECRET} to hub",
        f"GET https://hub.example/file?token={SECRET}&x=1",
        f"GET https://hub.example/file?key={SECRET}&x=1",
        f"GET https://cdn.example/x?X-Amz-Signature={SECRET}&X-Amz-Date=1",
        f"proxy http://user:{SECRET}@proxy.example:3128/",
        f"clone https://{SECRET}@git.example/x.git",
        f"ssh://root:{SECRET}@192.168.110.97",
        f'{{"level": "info", "password": "{SECRET}"}}',
        rf"{{\"api_key\": \"{SECRET}\"}}",
        f'vllm:x{{api_key="{SECRET}",model="m"}} 1.0',
        "hub said hf_AbCdEfGhIjKlMnOp" + "s3cr3t",
        "key sk-proj-s3cr3tAbCdEfGhIj",
        "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzM2NyM3QifQ.s3cr3t-sig",  # pragma: allowlist secret
        # pragma: allowlist nextline secret
        "-----BEGIN OPENSSH PRIVATE KEY-----\ns3cr3t\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_lines_that_hold_a_secret(line: str) -> None:
    found = REDACTOR.text(line)
    assert "s3cr3t" not in found
    assert SECRET not in found
    assert REMOVED in found
    assert REDACTOR.text(found) == found, "what is clean stays as it is"


@pytest.mark.parametrize(
    "line",
    [
        "Reqid: cmpl-1, Total tokens 1546, Inference Engine computed tokens: 0, LMCache hit tokens: 9, need",
        "LMCache hit tokens: None.",
        'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"} 1536.0',
        "vllm:time_to_first_token_seconds_sum 0.25",
        "max_num_batched_tokens=8192, api_key=None, hf_token=None",
        "# HELP vllm:prompt_tokens Number of prefill tokens processed.",
        "Retrieved 1536 out of 1536 required tokens (from 1536 total tokens). size: 0.1 GB, cost 1 ms",
        "Registered instance-worker ('lmcache_instance_1', 0) with URL 192.168.110.13:8500",
        "key: CacheEngineKey(fmt='vllm', model_name='demo', chunk_hash=123)",
        "ssh://root@192.168.110.97",
        "http://192.168.110.13:9000/controller/workers",
        "Established connection to peer_init_url: 192.168.110.13:8200",
        "tokenizer='demo', tokenizer_mode=auto, seed=0",
        '{"key_count": 6, "max_tokens": 16}',
        "{'encoder_cudagraph_token_budgets': [], 'token_sizes': [1, 2, 4], 'x': 0}",
        "INFO: Using hash algorithm: builtin (token_database.py:88:lmcache.v1.token_database)",
        'vllm:cache_config_info{cache_hit_alignment_tokens="None",block_tokens="128"} 1.0',
    ],
)
def test_lines_that_hold_none_stay(line: str) -> None:
    assert REDACTOR.text(line) == line


@given(secret=st.text(PRINTABLE, min_size=10, max_size=40))
def test_a_known_secret_never_comes_out(secret: str) -> None:
    if secret.isdigit() or secret in REMOVED:
        return
    redactor = Redactor.knowing([secret])
    spelt = [secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode(), json.dumps(secret)]
    text = redactor.text("\n".join(f"somewhere {one} in a line" for one in spelt))
    assert all(one.strip('"') not in text for one in spelt)
    data = redactor.data({"a": [f"x{secret}y"], secret: "named by it"})
    assert json.dumps(secret)[1:-1] not in json.dumps(data)


@given(
    secret=st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789-_.~+/=$#!%^*", min_size=10, max_size=40),
    name=st.sampled_from(["HF_TOKEN", "api_key", "password", "client-secret", "SSL_KEY", "x.auth.token"]),
    form=st.sampled_from(
        [
            "{n}={s}",
            "{n}: {s}",
            '"{n}": "{s}"',
            "--{n} {s}",
            "a {n}='{s}', b=1",
            "X {n} = {s}",
            '{{{n}="{s}"}} 1',
        ]
    ),
)
def test_an_unknown_secret_goes_by_its_name(secret: str, name: str, form: str) -> None:
    if secret.startswith("-") or not any(character.isalpha() for character in secret):
        return  # the next flag; a figure
    text = "INFO before " + form.format(n=name, s=secret) + " \nINFO after"
    found = REDACTOR.text(text)
    assert secret not in found
    assert found.startswith("INFO before ")
    assert found.endswith("\nINFO after")
    assert secret not in json.dumps(REDACTOR.data({"Env": [f"{name}={secret}"], "x": {name: secret}}))
    assert secret not in json.dumps(REDACTOR.data({"Cmd": ["serve", f"--{name}", secret, "--port", "1"]}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["tokens", "key_count", "a", "seed"]), inner)
    ),
)


@given(data=JSON)
def test_figures_stay(data: Any) -> None:
    assert REDACTOR.data(data) == data


@pytest.mark.parametrize("text", ["api_key='12345678'", "HF_TOKEN=12345678", "password: 1234"])
def test_a_secret_may_be_a_number(text: str) -> None:
    assert "1234" not in REDACTOR.text(text)
    assert "1234" not in json.dumps(REDACTOR.data({"Env": [text.replace(": ", "=")]}))


def test_structures() -> None:
    data = {
        "Env": [f"API_KEY={SECRET} and more", "HF_TOKEN=", "PYTHONHASHSEED=123", "X_TOKEN_LIMIT=5"],
        "Args": ["serve", "--api-key", SECRET, "--port", "8010", f"--hf-token={SECRET}"],
        "auth": {"user": "me", "numbers": [1, 2]},
        "password": 123456,
        "token": 17,
        "nested": {"text": f"Authorization: Bearer {SECRET}", "json": json.dumps({"secret": SECRET})},
        "secrets": {"hf_token": {"environment": "HF_TOKEN", "content": SECRET, "name": "kvshare_hf_token"}},
    }
    found = REDACTOR.data(data)
    assert SECRET not in json.dumps(found)
    assert found["Env"][1:] == ["HF_TOKEN=", "PYTHONHASHSEED=123", "X_TOKEN_LIMIT=5"]
    assert found["Args"][3:5] == ["--port", "8010"]
    assert (found["password"], found["token"]) == (REMOVED, 17)
    assert found["auth"]["numbers"] == [REMOVED, REMOVED]
    assert found["secrets"]["hf_token"] == {
        "environment": "HF_TOKEN",
        "content": REMOVED,
        "name": "kvshare_hf_token",
    }


def test_evidence_can_be_judged_after_it() -> None:
    text = records.dumps(proven())
    assert records.loads(Evidence, Redactor.knowing([SECRET]).json(text)) == proven()


def test_text_that_is_no_json_is_text() -> None:
    assert SECRET not in REDACTOR.json(f"{{ not json, api_key={SECRET}")


def test_values_by_name() -> None:
    assert secret_values({"HF_TOKEN": "a", "MODEL": "b", "X_KEY": ""}) == {"a"}


def test_short_values_and_figures_leave_no_holes() -> None:
    assert Redactor.knowing(["kv", "1234567", " ", "prefill"]).known == ()
