#!/usr/bin/env bash
# Every linter, as `make lint`, `make test` and pre-commit run them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"

ruff check --config tools/pyproject.toml .
ruff format --check --config tools/pyproject.toml .
mypy --config-file tools/pyproject.toml
# What patches add to a package lies as in that package, of which nothing else is here.
for added in docker/patches/*/files; do
  MYPYPATH=$added mypy --strict --python-version 3.11 --ignore-missing-imports --explicit-package-bases "$added"
done
lint-imports --no-logo --no-cache tools/pyproject.toml
git ls-files '*.sh' '*/bin/ssh' .ci/run | xargs shellcheck --external-sources
hadolint docker/Dockerfile
tests/find-secrets.sh
rendered=$(mktemp --directory)
trap 'rm -r "$rendered"' EXIT
for overlays in '' :compose.cpu.yaml :compose.rdma.yaml :compose.mp.yaml; do
  files=compose.yaml$overlays
  # A warning here is a variable without a default.
  warnings=$(COMPOSE_FILE=$files docker compose --env-file /dev/null --profile '*' config --output "$rendered/$files" 2>&1)
  [ -z "$warnings" ] || { echo "$files: $warnings" >&2; exit 1; }
done
compose-lint check --quiet --fail-on low --strict-config --skip-suppressed --config .compose-lint.yml "$rendered"/*
echo "lint: nothing to say"
