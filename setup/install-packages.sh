# shellcheck shell=bash
# Installs what find-missing.sh found missing, with apt, and says so before it does.

TRIXIE_SOURCES=/etc/apt/sources.list.d/kvshare-trixie.sources
TRIXIE_PREFERENCES=/etc/apt/preferences.d/kvshare-trixie
SSHD_NOT_TO_BE_RUN=${SSHD_NOT_TO_BE_RUN:-/etc/ssh/sshd_not_to_be_run} # its own service unit looks for it
DOCKER_PACKAGES="docker.io docker-cli docker-compose docker-buildx containerd"

os_release() { (. /etc/os-release && eval "printf '%s' \"\${$1:-}\""); }

# package_of WORD: its name in this distribution.
package_of() {
  case "$(os_release ID):$1" in
    debian:docker-cli) echo docker-cli ;;
    ubuntu:docker-cli) echo docker.io ;;
    *:docker-engine) echo "docker.io iptables" ;;
    ubuntu:docker-compose) echo docker-compose-v2 ;;
    *:python) echo "python3 python3-venv" ;;
    *) echo "$1" ;;
  esac
}

# Debian 12 ships Engine 20.10 and Compose 1.29, too old; Debian 13's packages run on it. Only those five are taken
# from there, everything else stays Debian 12's. The mirror is the one this machine already uses.
add_trixie_for_docker() {
  local mirror
  mirror=$(awk '$1 == "URIs:" {print $2; exit} $1 == "deb" {print ($2 ~ /^\[/) ? $4 : $2; exit}' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null)
  [ -n "$mirror" ] || refuse "expected a Debian mirror in /etc/apt and found none; add one and run this again"
  cat >"$TRIXIE_SOURCES" <<EOF
Types: deb
URIs: $mirror
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
  cat >"$TRIXIE_PREFERENCES" <<EOF
Package: $DOCKER_PACKAGES
Pin: release n=trixie
Pin-Priority: 990

Package: *
Pin: release n=trixie
Pin-Priority: 50
EOF
}

# The tests start an ssh server in a namespace of their own; this machine's is none of their business.
keep_sshd_from_starting() {
  say "will keep the ssh server from starting by itself ($SSHD_NOT_TO_BE_RUN); remove that file to use it"
  mkdir -p "$(dirname "$SSHD_NOT_TO_BE_RUN")"
  touch "$SSHD_NOT_TO_BE_RUN"
}

install_packages() {
  local words=("$@") word packages=()
  case "$(os_release ID)" in
    debian | ubuntu) ;;
    *) refuse "expected Debian or Ubuntu to install ${words[*]} on, found $(os_release PRETTY_NAME); install them yourself and run this again" ;;
  esac
  [ "$(id -u)" = 0 ] || refuse "expected root to install ${words[*]}, found user $(id -un); run this with sudo"
  for word in "${words[@]}"; do
    # shellcheck disable=SC2207 # package names hold no spaces
    packages+=($(package_of "$word"))
  done
  say "will install with apt: ${packages[*]}"
  if [ "$(os_release VERSION_CODENAME)" = bookworm ]; then
    say "will take Docker's packages from Debian 13 ($TRIXIE_SOURCES), since Debian 12's are too old"
    add_trixie_for_docker
  fi
  [[ " ${packages[*]} " != *" openssh-server "* ]] || keep_sshd_from_starting
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}
