#!/usr/bin/env bash
# Lease a proxy, ask for a URL through it, and say what became of it: lease.sh https://shop.example/
set -euo pipefail

api=${PHAROX_API:-http://127.0.0.1:8081/api/v1}
ask() { # PATH JSON
    curl --silent --show-error --fail-with-body \
        --header "Authorization: Bearer $PHAROX_TOKEN" --data "$2" "$api$1"
}
member() { sed "s/.*\"$1\":\"\([^\"]*\)\".*/\1/"; } # of an answer; jq does it better

# The id is ours: if an answer gets lost, the same request returns the same lease. It may have been
# given back meanwhile: then it has ended, and is asked for under a new id.
id=$(cat /proc/sys/kernel/random/uuid)
for attempt in 1 2 3 4 5; do
    lease=$(ask /acquire "{\"pool\": \"residential\", \"lease_id\": \"$id\", \"wait_seconds\": 30}") && break
    case $lease in
    "") ;; # no answer
    *'"code":"lease_ended"'*) id=$(cat /proc/sys/kernel/random/uuid) ;;
    *) attempt=5 ;;
    esac
    ((attempt < 5)) || { echo "$lease" >&2; exit 1; }
    sleep "$attempt"
done
proxy=$(member proxy_url <<<"$lease")
status=$(curl --silent --output /dev/null --write-out '%{http_code}' --proxy "$proxy" "$1") || true
outcome="{\"status\": $status}" # the fleet's rules for the target say what that means
if [[ $status == 000 ]]; then
    outcome='{"kind": "proxy_failed"}'
fi
ask /release "{\"lease_id\": \"$id\", \"outcome\": $outcome}" | member status
