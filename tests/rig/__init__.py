"""Two machines on one: hosts as network namespaces, each with a Docker engine, a context, and an address.

    python -m tests.rig up          192.168.110.13 and .97, as the original; prints what to put into .env
    python -m tests.rig down        stops all of it; --purge removes the engines' images too

The hosts share a bridge in a namespace of its own. Nothing is added to this machine's own network, and no
packet leaves it.
"""
