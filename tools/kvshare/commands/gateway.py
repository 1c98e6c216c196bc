"""The hidden `gateway`: one endpoint over all servers, as its container runs it."""

from pathlib import Path

import click

from kvshare.config import threshold
from kvshare.contract import DRAINED


@click.command(hidden=True)
@click.option("--host", envvar="KVSHARE_GATEWAY_HOST", required=True, help="Address to listen on.")
@click.option("--port", envvar="KVSHARE_GATEWAY_PORT", required=True, type=int)
@click.option("--prefill", envvar="KVSHARE_GATEWAY_PREFILL", required=True, help="Prefill's host.")
@click.option("--prefill-port", envvar="KVSHARE_GATEWAY_PREFILL_PORT", required=True, type=int)
@click.option("--decodes", envvar="KVSHARE_GATEWAY_DECODES", required=True, help="Decode's hosts.")
@click.option("--decode-port", envvar="KVSHARE_GATEWAY_DECODE_PORT", required=True, type=int)
@click.option("--min-tokens", envvar="KVSHARE_GATEWAY_MIN_TOKENS", default="0", help=threshold.NAME)
def gateway(
    host: str,
    port: int,
    prefill: str,
    prefill_port: int,
    decodes: str,
    decode_port: int,
    min_tokens: str,
) -> None:
    """Serve one endpoint: a long prompt goes to prefill first, then to the decode node that pulls it."""
    from kvshare.gateway.app import Gateway, serve
    from kvshare.gateway.nodes import Node, Pool
    from kvshare.servers.prompts import DEFAULT_CHUNK_SIZE

    drained = Path(DRAINED)
    drained.mkdir(exist_ok=True)
    listed = decodes.replace(",", " ").split()
    names = ["decode"] if len(listed) == 1 else [f"decode-{n}" for n, _ in enumerate(listed, start=1)]
    pool = Pool(
        Node("prefill", f"http://{prefill}:{prefill_port}"),
        tuple(Node(name, f"http://{at}:{decode_port}") for name, at in zip(names, listed, strict=True)),
        drained,
    )
    least = None if min_tokens == threshold.NEVER else max(int(min_tokens or 0), DEFAULT_CHUNK_SIZE)
    serve(Gateway(pool, least), host, port)
