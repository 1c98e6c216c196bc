#!/usr/bin/env bash
# Makes the image kvshare/base:bookworm (or the name given) with debootstrap, for machines where no image registry can be reached.
# usage: docker/base/make-base.sh [IMAGE]      FORCE=1 makes it again, MIRROR=URI takes packages from there
set -euo pipefail

readonly IMAGE=${1:-kvshare/base:bookworm} SUITE=bookworm KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# Removed from the image, and never unpacked by a later apt-get in a Dockerfile.
readonly LEFT_OUT=(/usr/share/doc /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian)

say() { echo "make-base: $*"; }

refuse() {
    say "$*" >&2
    exit 2
}

check_machine() {
    [ "$(id -u)" = 0 ] || refuse "expected root, found $(id -un): debootstrap makes device nodes; run it with sudo."
    command -v debootstrap > /dev/null || refuse "expected debootstrap, found none; type: apt-get install debootstrap"
    command -v docker > /dev/null || refuse "expected docker, found none; type: make setup"
    [ -f "$KEYRING" ] || refuse "expected $KEYRING, found none; type: apt-get install debian-archive-keyring"
}

# The machine's own apt sources, whatever their format, as lines "URI SUITE".
apt_sources() {
    local folder=${APT_SOURCES_DIR:-/etc/apt}
    cat "$folder/sources.list" "$folder"/sources.list.d/*.list 2> /dev/null \
        | sed -n 's/^deb  *\(\[[^]]*\]  *\)\{0,1\}\([^ ]*\)  *\([^ ]*\).*/\2 \3/p'
    # An empty line, or a file's end, ends a stanza.
    awk -v RS= '{
        uris = suites = ""
        if (/(^|\n)Enabled: *no/) next
        split($0, lines, "\n")
        for (i in lines) {
            if (sub(/^URIs: */, "", lines[i])) uris = lines[i]
            else if (sub(/^Suites: */, "", lines[i])) suites = lines[i]
        }
        n = split(uris, u, " "); m = split(suites, s, " ")
        for (i = 1; i <= n; i++) for (j = 1; j <= m; j++) print u[i], s[j]
    }' "$folder"/sources.list.d/*.sources 2> /dev/null
}

# Where the machine gets Debian's `updates` or `security` from, which no other publisher's source offers; nothing on Ubuntu.
mirror_of() {
    apt_sources | grep -E "^https?://[^ ]+ ($SUITE|trixie|stable)-$1\$" | head -n 1 | cut -d' ' -f1 || true
}

bootstrap() { # bootstrap FOLDER: without a mirror debootstrap takes the suite's own default
    local mirror=${MIRROR:-$(mirror_of updates)}
    say "unpacking a minimal Debian $SUITE from ${mirror:-its default mirror}"
    debootstrap --variant=minbase --include=ca-certificates --keyring="$KEYRING" "$SUITE" "$1" ${mirror:+"$mirror"} > "$1.log" 2>&1 \
        || { tail -n 5 "$1.log" >&2; refuse "debootstrap failed; name a reachable Debian mirror in MIRROR= and run this again."; }
}

leave_out() { # leave_out FOLDER
    local path
    for path in "${LEFT_OUT[@]}"; do
        echo "path-exclude $path/*" >> "$1/etc/dpkg/dpkg.cfg.d/kvshare"
        find "$1$path" -mindepth 1 -delete
    done
}

upgrade() { # upgrade FOLDER: security fixes newer than the release, from the machine's own sources or beside the main mirror
    local main security
    main=$(awk '$1 == "deb" {print $2; exit}' "$1/etc/apt/sources.list")
    security=$(mirror_of security)
    {
        echo "deb $main $SUITE-updates main"
        echo "deb ${security:-${main%/}-security} $SUITE-security main"
    } >> "$1/etc/apt/sources.list"
    say "installing its updates"
    chroot "$1" sh -c 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq --yes upgrade' > "$1.log" 2>&1 \
        || { tail -n 5 "$1.log" >&2; refuse "its updates could not be installed; name a reachable Debian mirror in MIRROR= and run this again."; }
}

clean() { # clean FOLDER
    chroot "$1" apt-get clean
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/{apt,debconf,ldconfig}/* "$1"/var/log/* "$1"/etc/{resolv.conf,hostname}
    rm -f "$1"/etc/{passwd-,group-,shadow-,gshadow-}
}

main() {
    check_machine
    if [ -z "${FORCE:-}" ] && docker image inspect "$IMAGE" > /dev/null 2>&1; then
        say "$IMAGE is already here"
        return
    fi
    # Not under /tmp, which may forbid device nodes.
    WORK=$(mktemp --directory --tmpdir=/var/tmp kvshare-base.XXXXXX)
    trap 'rm -rf "$WORK"' EXIT
    bootstrap "$WORK/root"
    leave_out "$WORK/root"
    upgrade "$WORK/root"
    clean "$WORK/root"
    tar --directory "$WORK/root" --exclude './dev/*' --exclude './proc/*' --exclude './sys/*' --create . \
        | docker import --change 'CMD ["bash"]' --message "debootstrap $SUITE" - "$IMAGE" > /dev/null
    say "made $IMAGE, $(docker image inspect --format '{{.Size}}' "$IMAGE" | awk '{printf "%.0f MB", $1 / 1e6}')"
}

main
