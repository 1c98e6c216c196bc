#!/usr/bin/env bash
# Regenerates every lock file in this folder from the .in files beside it and from tools/pyproject.toml.
# usage: docker/locks/compile.sh            UPGRADE=1 takes the newest versions allowed; otherwise locked ones are kept
#        docker/locks/compile.sh --check    writes nothing; exit 1 if a lock no longer resolves or the index has other hashes
# Needs uv (in docker/locks/dev.txt) and PyTorch for the CPU in docker/wheelhouse (fill.sh there).
set -euo pipefail
cd "$(dirname "$0")"

PATH="$PWD/../../.venv/bin:$PATH"
command -v uv > /dev/null || { echo "docker/locks: expected uv, found none; type: setup/setup.sh docker/locks/dev.txt" >&2; exit 2; }

readonly UV=(uv pip compile --quiet --generate-hashes --python-version 3.11)

compile() { # compile OUTPUT SOURCE... [OPTION...]
    "${UV[@]}" --custom-compile-command docker/locks/compile.sh ${UPGRADE:+--upgrade} --output-file "$@"
    echo "docker/locks/$1"
}

# Resolves anew, to the locked versions; every locked version and hash must come out again.
check() { # check OUTPUT SOURCE... [OPTION...]
    local lock=$1 resolved gone
    resolved=$("${UV[@]}" --no-annotate --no-header --constraints "$@" | sed 's/ \\$//')
    gone=$(sed '/^ *#/d; /^$/d; s/ \\$//' "$lock" | grep -vxFf <(echo "$resolved")) || return 0
    echo "docker/locks/$lock: expected lines that the package index still has, found others; type: docker/locks/compile.sh" >&2
    head -n 5 <<< "$gone" >&2
    exit 1
}

case "${1:-}" in
    --check) lock=check ;;
    "") lock=compile ;;
    *) echo "expected --check or nothing, found '$1'" >&2; exit 2 ;;
esac

# Inside the images: Debian 12 on x86-64.
image() { "$lock" "$@" --python-platform x86_64-manylinux_2_28; }

image engine-cpu.txt engine-cpu.in --excludes engine.excludes --excludes engine-cpu.excludes --no-emit-package lmcache --find-links ../wheelhouse
image engine-cuda.txt engine-cuda.in --excludes engine.excludes --excludes engine-cuda.excludes
image lmcache-build.txt lmcache-build.in --constraints engine-cpu.txt --find-links ../wheelhouse
image lmcache-source.txt lmcache-source.in --no-deps --no-binary lmcache
image build.txt build.in
image sbom.txt sbom.in

# The tool: with Docker's SDK on the operator's machine, whatever its Python from 3.11 on; without it, and with the gateway, in
# the client image.
tool=../../tools/pyproject.toml
"$lock" client.txt "$tool" build.in --extra operator --universal
"$lock" dev.txt "$tool" build.in dev.in --extra operator --extra gateway --constraints client.txt --universal
image client-image.txt "$tool" --extra gateway --constraints client.txt
image image-tests.txt image-tests.in --constraints dev.txt
