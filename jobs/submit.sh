#!/usr/bin/env bash
# Trains on a running Ray cluster: sends this folder (the code, not runs/ or .venv/) and shows the log until the end.
#
# command:  jobs/submit.sh --data /shared/fields/dataset.yaml --out runs/fields --training.epochs 40
#           jobs/submit.sh jobs/smoke.yaml      # draws its set, so only where BATCHSEG_HOME is a folder; for s3://:
#           jobs/submit.sh jobs/smoke.yaml --data s3://BUCKET/drawn/dataset.yaml --cluster.gpus_per_worker 0 \
#             --cluster.cpus_per_worker 7       # after: aws s3 sync runs/demo/data s3://BUCKET/drawn
#           All arguments go to `batchseg train`. The same line again resumes.
# hardware: that of the cluster
# time, score: on one machine only; see the config that you submit
#
# BATCHSEG_MODULE says what is run: batchseg.train, or batchseg.segment as jobs/segment.sh does.
#
# Where to:  RAY_API_SERVER_ADDRESS, default http://127.0.0.1:8265 (what `ray dashboard cluster.yaml` and
#            `kubectl port-forward` offer).
# Token:     in $RAY_AUTH_TOKEN, in the file $RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token: sent when there is one.
#            RAY_AUTH_MODE=disabled sends none. On Kubernetes the token is KubeRay's own, in the Secret named as the
#            RayCluster: RAY_AUTH_TOKEN=$(kubectl get secret CLUSTER -o jsonpath='{.data.auth_token}' | base64 -d)
# Paths:     a relative --out lies under $BATCHSEG_HOME of the cluster; data must be at the same path on every node.
# Expect:    the id of the job, the log with progress lines, batchseg's own exit code in the last line. Exit 0 when that
#            was 0, else 1. Ctrl-C leaves the job running: `ray job logs --follow ID` comes back, `ray job stop ID` ends it.
# Needs:     the Ray version of constraints.txt on this machine, and batchseg's dependencies on every node.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
if [[ -n ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} || -s ~/.ray/auth_token ]]; then
  export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
fi
if ! command -v ray > /dev/null; then
  echo "jobs/submit.sh: no \`ray\` here; make install, or activate the environment that has it" >&2
  exit 2
fi

exec ray job submit --working-dir . \
  --runtime-env-json '{"excludes": [".git", ".venv", "runs", ".mypy_cache", ".ruff_cache", ".pytest_cache"]}' \
  -- python -m "${BATCHSEG_MODULE:-batchseg.train}" "$@"
