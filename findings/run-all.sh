#!/usr/bin/env bash
# Runs every finding, or those named, with a time limit each, and prints one line for each.
# Exit code 1 when one of them has changed.
set -uo pipefail
cd "$(dirname "$0")"
limit=${FINDING_SECONDS:-240}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
still=0 changed=0 skipped=0
[ $# -gt 0 ] || set -- [!_]*.sh
for script in "$@"; do
    script=${script%.sh}.sh
    [ "$script" = run-all.sh ] && continue
    timeout -k 10 "$limit" bash "$script" >"$log" 2>&1 </dev/null
    case $? in
    0) still=$((still + 1)) word="still so" ;;
    77) skipped=$((skipped + 1)) word="skipped" ;;
    *) changed=$((changed + 1)) word="CHANGED" ;;
    esac
    echo "$word  ${script%.sh}"
    [ "$word" = "still so" ] || sed 's/^/    /' "$log" | tail -25
done
echo "$still still so, $changed changed, $skipped skipped"
[ "$changed" -eq 0 ]
