"""The probe of every patch: green with all patches, and red without its own, or without a part of it."""

from __future__ import annotations

import pytest
from guard.series import Patch
from probes.__main__ import SLOW

from tests.patches.upstream import PATCHES, Files, Probe, patched_files, without, without_hunks

# What the probe of a patch says of the package without it.
RED = {
    "message-defaults": "A RegisterMsg without peer_init_url",
    "cpu-connector": "No supported cpu connector found.",
    "lookup-loop": "did not wake up",
    "pull-loop": "After bad messages on the reply socket no worker can register",
    "lookup-timeout": "should be a miss, but is KeyError",
    "double-free": "free_twice",
    "same-rank": "Rank 1 should be sent to 'peer:1', but is to 'peer:0'.",
    "registration": "Without a controller a miss took",
    "worker-synced": "should say False, but says None",
    "sync-increments": "3 keys should be known",
    "sync-unfrozen": "should be synchronised and know",
    "sync-asked": "The second worker should be asked for its keys.",
    "sync-gap": "After a lost message a worker should be asked for its keys.",
    "sync-end": "should say so within 10 s, but says None",
    "sync-ready": "not [1, 2]",
    "peer-loops": "After bad messages on its P2P sockets nobody can pull from a node.",
    "peer-connect": "While one peer is connected to, another should be pulled from.",
    "peer-answer": "With a peer stopped, a local hit should be a hit.",
    "quarantine": "and what it brings right",
    "full-memory": "Of 8 chunks 4 should be pulled into 4 pages",
    "evicted": "After a miss all pages should be free",
    "peer-transfer": "A prompt should be pulled after a transfer to a node that is stopped",
    "peer-heartbeat": "A dead connection should be dropped within 15 s.",
    "worker-address": "should register with that address, not with 127.0.0.1",
    "p2p-threshold": "Where the whole prompt is too short, nothing should be pulled, but 32 tokens",
    "lanes": "KV should travel on 3 connections and does on 1.",
    "cluster-key": "Who has no key should be turned away, and is let in.",
    "http-key": "Who has not the key should get 401, but is served ['/'",
    "descriptors": "should run nothing, and it ran",
    "pulled-from": "Bytes pulled from each peer should be",
    "peer-introduction": "connected to a peer that was there before within 10 s, without a request",
    "held-prefix": "With 3 of 3 chunks held by vLLM, 0 should be found, but got {'hits': 48",
    "export-interval": "A store should be counted within 7 s and was not",
    "resumed-request": "768 tokens should be loaded, but 512 are named",
    "unread-lookup": "1 lookups found 512 tokens",
    "lookup-ids": "one should be left and one cleaned up, but 1001 are",
    "request-fields": "KeyError('receiver_host')",
    "pull-pieces": "A pull of 2 chunks should bring them all, while others pull",
    "kv-checksum": "A chunk with keys zeroed should be left out",
    "shared-pull": "8 requests for one prompt should make one pull, and make 8",
    "mp-make-room": "all should be stored where older ones are, not 16",
    "mp-late-read": "should have its values after a late read",
    "mp-cluster-key": "Who has no key should be turned away, and is let in.",
    "mp-http-key": "Who has not the key should get 401, but is served ['/instances'",
    "mp-served": "Bytes pulled from each peer should be",
    "mp-server-gone": "A store that is not answered should fail, but ends the engine",
    "mp-dead-writer": "Of what was never written nothing should be found, but 1 chunk is.",
    "mp-peer-restart": "A peer that was restarted should be pulled from, not {'hits': 0",
    "mp-handshake": "After a message that is none a peer should find all, and finds",
    "mp-bad-messages": "Bad messages should be counted as",
    "mp-descriptors": "What a stranger sends to the port where peers meet should run nothing",
    "mp-no-pickle": "A cache server should run nothing that it is sent, and made a folder.",
    "mp-stored-first": "A step that is told to should end when it is stored, and ends before.",
    "mp-left-load": "A request that ends in its load should be saved at the end, and is",
    "mp-coordinator-away": "A peer should be known on while the coordinator does not answer",
    "mp-lookup-left": "After a lookup that was given up 3 objects should be kept no longer.",
    "mp-identity": "should have a salt of its own",
    "failed-load": "[] should be stored, but ['request'] is",
    "identity": "should have keys of its own",
    "held-blocks": "the rest should not be stored",
    "whole-graph": "With no attention metadata the KV of ['request'] should be loaded, but [] is.",
    "progress-delay": "An idle NIXL agent should leave the CPU alone",
    "base-model": "bgmv_shrink should leave a row without an adapter as it is",
    "prompt-adapter": "The size of tensor a (5) must match the size of tensor b (2)",
    "seed-in-pieces": "CPU Generator does not use offset",
    "waiting-ranks": "Who waits 100 times should give its core up as often, but did",
    "chosen-start": "An engine should start by fork where that is chosen, but starts by spawn.",
    "strange-objects": "A strange object in a module should be passed by:",
}
# A part of a patch, known by texts that its hunks bring, and what the probe says without it.
PARTS = [
    ("message-defaults", ("Heartbeat from",), "A HeartbeatMsg without peer_init_url"),
    ("pull-loop", ("_handle_pushed",), "After bad messages on the pull socket no key is admitted."),
    (
        "pull-loop",
        ("a heartbeat of", "is no heartbeat"),
        "After bad messages on the heartbeat socket a heartbeat gets",
    ),
    ("p2p-threshold", ("self._declines(keys):",), "there should be 0 questions to the controller"),
    ("p2p-threshold", ("_declines(keys[:num_hit_chunks]):",), "Where the peer holds too little, nothing"),
    ("peer-introduction", ("_handle_heartbeat_commands(",), "a peer that came later within 10 s"),
    ("mp-server-gone", ("known is False",), "A server that does not know a worker should be told of it once"),
    ("seed-in-pieces", ("kept = {",), "A seed should draw token"),
]


def require_red(patch_id: str, probe: Probe, files: Files, sentence: str) -> None:
    result = probe(patch_id, files)
    assert result.returncode == 1, result.stdout
    assert sentence in result.stderr


# The build of the image that these tests run in has run the quick probes.
@pytest.mark.parametrize("patch_id", [patch.id for patch in PATCHES if patch.id in SLOW])
def test_the_probe_is_green_with_all_patches(probe: Probe, patch_id: str) -> None:
    result = probe(patch_id, patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, [f"{patch_id}: ok"]), result.stderr


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.id)
def test_the_probe_is_red_without_the_patch(probe: Probe, patch: Patch) -> None:
    require_red(patch.id, probe, without(patch.id), RED[patch.id])


@pytest.mark.parametrize(("patch_id", "texts", "sentence"), PARTS)
def test_the_probe_is_red_without_a_part_of_the_patch(
    probe: Probe, patch_id: str, texts: tuple[str, ...], sentence: str
) -> None:
    part = without_hunks(patch_id, lambda hunk: any(text in "".join(hunk.new) for text in texts))
    require_red(patch_id, probe, part, sentence)


def test_a_worker_bound_to_every_address_is_seen(probe: Probe) -> None:
    files = patched_files()
    name = "lmcache/v1/cache_controller/worker.py"
    files[name] = (files[name] or "").replace("{host or '*'}:", "*:")
    sentence = "The worker_port of a node at 127.0.0.2 should not answer at 127.0.0.1."
    require_red("worker-address", probe, files, sentence)
