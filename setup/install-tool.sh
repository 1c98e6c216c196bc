# shellcheck shell=bash
# The kvshare tool in a virtual environment of its own, from a lock file with hashes.

stamp_of() { echo ".venv/$(basename "$1" .txt).sha256"; }
sum_of() { cat "$1" tools/pyproject.toml | sha256sum; }
is_installed() { [ -x .venv/bin/kvshare ] && [ "$(cat "$(stamp_of "$1")" 2>/dev/null)" = "$(sum_of "$1")" ]; }

# install_tool LOCK: (re)installs only when the lock changed.
install_tool() {
  local lock=$1 held
  is_installed "$lock" && return
  say "will install the kvshare tool into .venv, from $lock"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --require-hashes -r "$lock"
  .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable tools
  # dev.txt is compiled on top of client.txt: whoever has the one has the other.
  for held in "$lock" docker/locks/client.txt; do sum_of "$held" >"$(stamp_of "$held")"; done
}
