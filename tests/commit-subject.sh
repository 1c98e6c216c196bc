#!/usr/bin/env bash
# The subject of a commit message, as CONTRIBUTING.md wants it; a commit-msg hook hands over the message's file.
set -euo pipefail
export LC_ALL=C.UTF-8 # a character is a character, however many bytes it has

subject=$(grep --max-count=1 --invert-match '^#' "$1" || true)
refuse() {
  echo "The subject: expected $1, found $2: $subject. Type git commit again." >&2
  exit 1
}
[[ $subject == fixup!* || $subject == squash!* ]] && exit 0 # they become part of another commit
[[ $subject == *[^[:space:]]* ]] || refuse "what the commit does" "nothing"
((${#subject} <= 72)) || refuse "at most 72 characters" "${#subject}"
[[ $subject != *\;* ]] || refuse "one topic" "a semicolon"
[[ $subject != *. ]] || refuse "no dot at the end" "one"
