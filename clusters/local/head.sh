#!/usr/bin/env bash
# The head of a Ray cluster on this machine: loopback only, a token asked of everyone, Ctrl-C ends it.
#
#     clusters/local/head.sh                                   then, elsewhere:
#     tokendial train digits --on http://127.0.0.1:8265
#
# PORT (6379) and DASHBOARD_PORT (8265) choose ports; further arguments go to `ray start`, e.g. --num-cpus 2.
set -euo pipefail
umask 077

export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
  mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
  python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH"
fi
chmod 600 "$RAY_AUTH_TOKEN_PATH"

# Whoever reaches the dashboard may run code, so a token is asked for even on loopback, which every local user reaches.
export RAY_AUTH_MODE=token
# Runs outlive the cluster here; a job's own working folder does not.
export TOKENDIAL_HOME="${TOKENDIAL_HOME:-$PWD/runs}"
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true
# Every server of the node on 127.0.0.1; Ray's own default is the address of the first network card.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0

exec ray start --head --block --node-ip-address=127.0.0.1 --port="${PORT:-6379}" \
  --dashboard-host=127.0.0.1 --dashboard-port="${DASHBOARD_PORT:-8265}" "$@"
