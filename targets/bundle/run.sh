#!/bin/sh
# Serves the model that lies beside this file. HOST, PORT and API_KEY_FILE (a key on each line; clients send one) come
# from the environment; flags go on to `edgeft-run serve`. Another HOST than this machine's own needs a key, or
# --insecure-no-auth.
set -eu
self=$(readlink -f -- "$0" 2>/dev/null || printf '%s' "$0")
here=$(CDPATH='' cd -- "$(dirname -- "$self")" && pwd)
exec "$here/edgeft-run" serve "$here" --host "${HOST:-127.0.0.1}" --port "${PORT:-8080}" \
  ${API_KEY_FILE:+--api-key-file "$API_KEY_FILE"} "$@"
