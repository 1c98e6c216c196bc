#!/usr/bin/env bash
# Looks for secrets in every tracked file, or in those given; exit 1 names where, and never what.
# A line that only looks like one ends with `pragma: allowlist secret`, or follows `pragma: allowlist nextline secret`.
# usage: tests/find-secrets.sh [FILE...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"

# What the tests plant, and the hashes of patched files.
readonly PLANTED='s3cr[e3]t|^sk-(secret|other|not-a-real-key)$' HASHES='sha256_(before|after)='

# Locks hold nothing but hashes, thousands of them.
if [ $# -gt 0 ]; then printf '%s\0' "$@"; else git ls-files -z ':!docker/locks/*.txt'; fi |
  xargs -0 -n 100 -P "$(nproc)" detect-secrets-hook --exclude-secrets "$PLANTED" --exclude-lines "$HASHES"
