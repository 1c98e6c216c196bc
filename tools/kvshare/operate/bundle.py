"""`kvshare bundle`: one archive with what a stranger needs to find a fault, and without its secrets."""

import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from kvshare import __version__, templates
from kvshare.config.settings import Settings
from kvshare.contract import bearer_of
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.operate import logs
from kvshare.operate.redact import Redactor, is_secret_name, secret_values
from kvshare.operate.status import status
from kvshare.progress import Step, step
from kvshare.site import compose, dockerd
from kvshare.site.base import State, at_once, told
from kvshare.site.compose import read_stack, resolved_config
from kvshare.site.containers import Containers
from kvshare.site.engine import engine
from kvshare.stack.members import Member, Stack

DEFAULT_TAIL = 10_000
SAVED_LINES = 2000  # of each log of a build or of the engine
PATHS = {  # of the others /metrics alone
    "controller": ("/metrics", "/controller/workers", "/controller/key-stats"),
    "coordinator": ("/metrics", "/instances"),
    "prefill-cache": ("/metrics", "/status"),
    "decode-cache": ("/metrics", "/status"),
}
OWNER_ONLY = 0o600

_ABOUT = {
    "README.md": "this list, and what could not be had",
    "settings.json": "the decisions of .env and .env.example, as they came out",
    "versions.json": "of the tool, and of Docker and Compose on every context",
    "status.json": "each node as make status shows it",
    "compose/": "the resolved docker compose config, as each context has it",
    "images/": "docker image inspect of every image that a container runs, labels included",
    "inspect/": "docker inspect of every container",
    "fingerprints/": "what each engine says it runs with",
    "logs/": "the logs, one file a node",
    "metrics/": "what the servers and the controller export, and the controller's workers and keys",
    "saved/": "from .kvshare and --evidence: what verify, doctor and builds left",
}


@dataclass
class Contents:
    """What goes into a bundle, by name, and what does not, with the reason; both fill up part by part."""

    redactor: Redactor
    files: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, read: Callable[[], Any]) -> None:
        """Keep without its secrets what can be read: a text, JSON by its structure, or data, as JSON."""
        with self.part(name):
            found = read()
            text = found if isinstance(found, str) else json.dumps(found)
            self.files[name] = (
                self.redactor.json(text) if name.endswith(".json") else self.redactor.text(text)
            )

    def miss(self, name: str, reason: str) -> None:
        """Note that a part cannot be had."""
        self.missing[name] = self.redactor.text(reason)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note what raises in between as a missing part, and go on."""
        try:
            yield
        except KvshareError as error:
            self.miss(name, error.message)
        except (OSError, ValueError, LookupError, TypeError) as error:
            self.miss(name, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Options:
    """What the user chose; ``evidence`` are files of theirs to put in as well."""

    tail: int = DEFAULT_TAIL
    evidence: tuple[Path, ...] = ()


def default_path(now: datetime | None = None) -> Path:
    """Return a name that sorts by time and is free for a second."""
    return Path(f"kvshare-bundle-{(now or datetime.now(UTC)):%Y%m%dT%H%M%SZ}.tar.gz")


def bundle(settings: Settings, path: Path, options: Options) -> Contents:
    """Gather everything and write it to ``path``, readable by its owner alone; KvshareError if that fails."""
    _require_writable(path)
    with step(f"Gather {path.name}") as current:
        contents = gather(settings, options, current)
        contents.files["README.md"] = readme(contents)
        write(contents, path)
    return contents


def gather(settings: Settings, options: Options, current: Step) -> Contents:
    """Return what can be had; nothing that is missing raises."""
    contents = Contents(Redactor.knowing(known_secrets(settings)))
    contents.add("settings.json", lambda: dict(settings.values))
    stack = None
    with contents.part("everything about nodes"):
        stack = read_stack(settings)
    if stack is not None:
        current.detail("asking the engines")
        site = Containers(stack, settings)
        # Before any log is read: what a container has in its environment must not come out of its log.
        contents.redactor = Redactor.knowing(known_secrets(settings) | _container_secrets(site.look()))
        for context, error in site.silent.items():
            contents.miss(f"all of context {context}", error.message)
        _add_nodes(contents, site, options, current)
        _add_compose(contents, settings, stack)
        contents.add("status.json", lambda: [asdict(row) for row in status(site)])
    contexts = stack.contexts if stack is not None else (settings.prefill_context,)
    contents.add("versions.json", lambda: _versions(contexts))
    _add_saved(contents, settings.root, options.evidence)
    return contents


def known_secrets(settings: Settings) -> set[str]:
    """Return the secret values that this machine's settings, environment and token files hold."""
    variables = {**os.environ, **settings.values}
    values = secret_values(variables)
    paths = {path for name, path in variables.items() if path and _names_a_secret_file(name)}
    home = Path(variables.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    files = (*(settings.root / Path(path).expanduser() for path in paths), settings.cluster_key_file)
    for path in (*files, home / "token"):
        try:
            values.add(path.read_text().strip())
        except (OSError, ValueError):
            continue
    with suppress(KvshareError):  # a key that is none lets nobody in
        if key := settings.cluster_key:
            values.add(bearer_of(key))
    return values


def _names_a_secret_file(name: str) -> bool:
    stem, _, last = name.rpartition("_")
    return last.lower() in ("file", "path") and is_secret_name(stem)


def _container_secrets(found: Mapping[str, State]) -> set[str]:
    values: set[str] = set()
    for state in found.values():
        pairs = (entry.partition("=") for entry in state.described["Config"].get("Env") or ())
        values |= secret_values({name: value for name, _, value in pairs})
    return values


# Nodes


def _add_nodes(contents: Contents, site: Containers, options: Options, current: Step) -> None:
    found, seen = site.look(), set[tuple[str, str]]()
    for member in site.stack.members:
        state = found.get(member.name)
        if state is None:
            if member.context not in site.silent:
                contents.miss(
                    f"{member.name}: everything", f"context {member.context} has no container of it"
                )
            continue
        current.detail(f"asking {member.name}")
        _add_container(contents, site, member, state, options)
        if (image := (member.context, state.image_id)) not in seen:
            seen.add(image)
            contents.add(f"images/{member.name}.json", partial(_image, *image))


def _add_container(
    contents: Contents, site: Containers, member: Member, state: State, options: Options
) -> None:
    contents.add(f"inspect/{member.name}.json", lambda: state.described)
    selection = logs.Selection(tail=options.tail)
    contents.add(
        f"logs/{member.name}.log",
        lambda: "".join(f"{line.when} {line.text}\n" for line in logs.read_one(site, member, selection)),
    )
    if state.status != "running":
        contents.miss(f"{member.name}: fingerprint and metrics", f"its container is {state.status}")
        return
    if member in site.stack.engines:
        contents.add(f"fingerprints/{member.name}.json", lambda: site.fingerprint(member))
    for path in PATHS.get(member.service, ("/metrics",)):
        name = f"metrics/{member.name}{'.prom' if path == '/metrics' else f'-{Path(path).name}.json'}"
        contents.add(name, partial(told, site, member, path))


def _image(context: str, image_id: str) -> list[dict[str, Any] | None]:
    """Return it as `docker image inspect` does."""
    return [engine(context).image(image_id)]


def _add_compose(contents: Contents, settings: Settings, stack: Stack) -> None:
    for context in stack.contexts:
        contents.add(f"compose/{context}.json", partial(resolved_config, settings, context))


def _versions(contexts: Sequence[str]) -> dict[str, Any]:
    """Return versions of what takes part; an engine that gives none is named with its reason."""
    answers, errors = at_once(lambda context: engine(context).version(), contexts)
    return {
        "kvshare": __version__,
        "python": platform.python_version(),
        "operator": platform.platform(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "docker command": compose.plugin("--version"),
        "docker": {**answers, **{context: error.message for context, error in errors.items()}},
        "compose": {context: compose.plugin("compose", "version", "--short") for context in contexts},
    }


def _add_saved(contents: Contents, root: Path, evidence: Iterable[Path]) -> None:
    """Add the user's evidence whole, and of what `.kvshare` keeps the reports whole and the logs' ends."""
    kept = dockerd.state_dir(root)
    for path in (*sorted(kept.glob("*.json")), *evidence):
        contents.add(f"saved/{path.name}", path.read_text)
    for path in sorted(kept.glob("*.log")):
        contents.add(f"saved/{path.name}", partial(_end_of, path))
    if not any(name.startswith("saved/") and name.endswith(".json") for name in contents.files):
        contents.miss(
            "evidence of verify",
            "none is saved: make verify keeps what it saw last for make bundle",
        )


def _end_of(log: Path) -> str:
    return "".join(log.read_text(errors="replace").splitlines(keepends=True)[-SAVED_LINES:])


# Writing


def readme(contents: Contents) -> str:
    """Return the bundle's own description."""
    there = ("README.md", *contents.files)
    return templates.fill(
        "kvshare.operate",
        "bundle.md.j2",
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        inside={name: about for name, about in _ABOUT.items() if any(f.startswith(name) for f in there)},
        missing=contents.missing,
    )


def write(contents: Contents, path: Path) -> None:
    """Write the archive, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY)
        with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
            folder = path.name.removesuffix(".tar.gz")
            for name, text in sorted(contents.files.items()):
                data = text.encode(errors="replace")
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), OWNER_ONLY
                archive.addfile(entry, io.BytesIO(data))
        partial.replace(path)
    except OSError as error:
        raise CouldNotCheckError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)


def _require_writable(path: Path) -> None:
    if not path.name.endswith(".tar.gz"):
        raise KvshareError(f"{path} is no name for a bundle: it must end in .tar.gz.")
    if path.exists():
        raise KvshareError(f"{path} is there already: give another name, or remove it.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise KvshareError(f"{path} cannot be written: {path.parent} is no folder that you may write to.")
