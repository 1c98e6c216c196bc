# shellcheck shell=bash
# No impact yet: names what this machine lacks. Sets MISSING to a list of words that install-packages.sh understands.

MISSING=()

has_compose() {
  local version
  version=$(docker compose version --short 2>/dev/null) || return 1
  at_least "${version#v}" "$MIN_COMPOSE"
}

has_python() {
  python3 -c "import sys, venv, ensurepip; sys.exit(sys.version_info < tuple(map(int, '$MIN_PYTHON'.split('.'))))" \
    2>/dev/null
}

command -v docker >/dev/null || MISSING+=(docker-cli)
# An engine elsewhere (a Docker context, DOCKER_HOST) needs no engine here.
command -v dockerd >/dev/null || docker info >/dev/null 2>&1 || MISSING+=(docker-engine)
has_compose || MISSING+=(docker-compose)
docker buildx version >/dev/null 2>&1 || MISSING+=(docker-buildx)
has_python || MISSING+=(python)
command -v debootstrap >/dev/null || MISSING+=(debootstrap)
for package in "${@:2}"; do
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || MISSING+=("$package")
done
