# shellcheck shell=bash
# Narration goes to stderr, so that a command's own output stays usable.

say() { printf 'kvshare: %s\n' "$*" >&2; }

# refuse SENTENCE: what was expected, what was found, what to type next. Exit 2 is bad input or a machine that will not do.
refuse() {
  say "$*"
  exit 2
}

# at_least FOUND MINIMUM: compares version numbers.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
