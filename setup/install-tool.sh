# shellcheck shell=bash
# The kvshare tool in a virtual environment of its own, from a lock file with hashes.

# install_tool LOCK: (re)installs only when the lock changed.
install_tool() {
  local lock=$1 stamp=.venv/lock.sha256 sum
  sum=$(cat "$lock" tools/pyproject.toml | sha256sum)
  if [ ! -x .venv/bin/kvshare ] || [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ]; then
    say "will install the kvshare tool into .venv, from $lock"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --require-hashes -r "$lock"
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable tools
    echo "$sum" >"$stamp"
  fi
}
