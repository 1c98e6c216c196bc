"""`python -m kvshare_engine PROGRAM`: the engine image's entrypoint."""

from __future__ import annotations

import os
import sys

from kvshare_engine.environment import refuse

PROGRAMS = ("controller", "server", "coordinator", "cache", "health", "ask", "probe")
USAGE = f"expected one of {', '.join(PROGRAMS)}"


def main(arguments: list[str]) -> int:
    match arguments:
        case ["controller"]:
            from kvshare_engine import controller

            controller.run()
        case ["server"]:
            from kvshare_engine import server

            server.run()
        case ["coordinator"]:
            from kvshare_engine import coordinator

            coordinator.run()
        case ["cache"]:
            from kvshare_engine import cache

            cache.run()
        case ["health"]:
            from kvshare_engine import health

            return health.run(os.environ.get("KVSHARE_ROLE", "controller"))
        case ["ask", path]:
            from kvshare_engine import health

            return health.run_ask(os.environ.get("KVSHARE_ROLE", "controller"), path)
        case ["probe", *rest]:
            from kvshare_engine import probe

            probe.run(rest)
        case [program, *_] if program not in PROGRAMS and not program.startswith("-"):
            os.execvp(program, arguments)  # `docker compose run --rm prefill ucx_info -d` and the like
        case _:
            refuse(f"{USAGE} and found '{' '.join(arguments)}'")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
