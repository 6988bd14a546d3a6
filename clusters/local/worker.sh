#!/usr/bin/env bash
# A second node of the cluster that head.sh started, on the same machine; Ctrl-C ends it.
#
# PORT (6379) is the head's; further arguments go to `ray start`, e.g. --num-cpus 2.
set -euo pipefail

export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
export RAY_AUTH_MODE=token
export TOKENDIAL_HOME="${TOKENDIAL_HOME:-$PWD/runs}"
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0

# Ray means that variable for macOS and Windows, where it takes one node only: `ray start` alone is told otherwise here.
several='from ray._private import ray_constants, services
from ray.scripts.scripts import main
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: "127.0.0.1"
main()'
# A folder of its own: two nodes in the head's would take away each other's working folders of jobs.
exec python -c "$several" start --block --address="127.0.0.1:${PORT:-6379}" --node-ip-address=127.0.0.1 \
  --temp-dir="${TMPDIR:-/tmp}/ray-node-$$" "$@"
