#!/usr/bin/env bash
# Regenerates every lock file in this folder from the .in files beside them: docker/locks/compile.sh
# Versions already locked are kept; UPGRADE=1 takes the newest ones allowed. Needs uv, and docker/wheelhouse/fill.sh run once.
set -euo pipefail
cd "$(dirname "$0")"

compile() { # compile OUTPUT SOURCE... [OPTION...]
    uv pip compile --quiet --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --custom-compile-command docker/locks/compile.sh ${UPGRADE:+--upgrade} --output-file "$@"
    echo "docker/locks/$1"
}

compile engine-cpu.txt engine-cpu.in --excludes engine-cpu.excludes --no-emit-package lmcache --find-links ../wheelhouse
compile lmcache-build.txt lmcache-build.in --constraints engine-cpu.txt --find-links ../wheelhouse
compile lmcache-source.txt lmcache-source.in --no-deps --no-binary lmcache
