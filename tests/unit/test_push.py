"""REGISTRY, and what Docker's refusals mean; pushing itself is tested against a registry in tests/images."""

from __future__ import annotations

import pytest

from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.operate import push
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "registry", ["registry.example:5000/kvshare", "ghcr.io/me/kv-share", "127.0.0.1:5000"]
)
def test_registries(registry: str) -> None:
    assert push.registry_of(Settings(ROOT, {"REGISTRY": registry})) == registry


@pytest.mark.parametrize(
    ("registry", "sentence"),
    [
        ("", "no registry is chosen: type make push REGISTRY="),
        ("https://registry.example", "give HOST.* in lower case, without https://"),
        ("registry.example/Kvshare", "is no registry's name"),
        ("registry.example/kvshare/", "is no registry's name"),
    ],
)
def test_what_is_no_registry(registry: str, sentence: str) -> None:
    with pytest.raises(KvshareError, match=sentence):
        push.registry_of(Settings(ROOT, {"REGISTRY": registry}))


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        (
            'Get "https://r.example/v2/": http: server gave HTTP response to HTTPS client',
            "r.example speaks plain HTTP: add it to insecure-registries",
        ),
        (
            "denied: requested access to the resource is denied",
            "r.example does not let us in: type docker login r.example",
        ),
        ("no basic auth credentials", "type docker login r.example"),
        (
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
            "context gpu-b does not trust the certificate of r.example",
        ),
        ("manifest unknown: manifest unknown", "r.example does not have it: type make push first"),
        (
            "dial tcp: lookup r.example on 1.1.1.1:53: no such host",
            "no registry answers at r.example, as seen from context gpu-b",
        ),
        ("write /x: no space left on device", "the disk of context gpu-b is full"),
        ("something new", "something new"),
    ],
)
def test_a_refusal_says_what_to_do(said: str, meaning: str) -> None:
    explained = push.explain(said, "gpu-b", "r.example/kvshare")
    assert explained.startswith(meaning) or meaning in explained
    assert said in explained
