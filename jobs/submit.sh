#!/usr/bin/env bash
# Trains on a running Ray cluster: sends this folder (the code, not runs/ or .venv/) and shows the log until the end.
#
# command:  jobs/submit.sh jobs/smoke.yaml
#           jobs/submit.sh --data /shared/fields/dataset.yaml --out runs/fields --training.epochs 40
#           All arguments go to `batchseg train`.
# hardware: that of the cluster
# time, score: not run here; see the config that you submit
#
# BATCHSEG_MODULE says what is run: batchseg.train, or batchseg.segment as jobs/segment.sh does.
#
# Where to:  RAY_API_SERVER_ADDRESS, default http://127.0.0.1:8265 (what `ray dashboard cluster.yaml` and
#            `kubectl port-forward` offer).
# Token:     RAY_AUTH_MODE=token, and the cluster's token in ~/.ray/auth_token or $RAY_AUTH_TOKEN.
# Paths:     a relative --out lies under $BATCHSEG_HOME of the cluster; data must be at the same path on every node.
# Exit:      0 when batchseg ended with 0, else 1; the last line of the log tells its own exit code.
# Needs:     the Ray version of constraints.txt on this machine, and batchseg's dependencies on every node.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"

exec ray job submit --working-dir . \
  --runtime-env-json '{"excludes": [".git", ".venv", "runs", ".mypy_cache", ".ruff_cache", ".pytest_cache"]}' \
  -- python -m "${BATCHSEG_MODULE:-batchseg.train}" "$@"
