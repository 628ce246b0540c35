#!/usr/bin/env bash
# Segments a folder on a running Ray cluster: sends this folder (the code, not runs/ or .venv/) and shows the log.
#
# command:  jobs/segment.sh /shared/photos --model runs/fields/bundle --out runs/photos
#           All arguments go to `batchseg segment`. The same line again does only what is missing.
# hardware: that of the cluster
# time, score: on one machine only
#
# Where to, token, what to expect, needs: as in jobs/submit.sh. Exit 1 may mean that a few images failed (batchseg's own
# exit code 3, named in the last line of the log); their rows are in OUT/rows/status=error.
# Paths:     INPUT absolute, at the same path on every node, or s3://. --model must be given the first time, since the job
#            runs in a copy of this folder, which has no runs/. A relative --model or --out lies under $BATCHSEG_HOME of
#            the cluster, where jobs/submit.sh has put it.
set -euo pipefail
BATCHSEG_MODULE=batchseg.segment exec "$(dirname "${BASH_SOURCE[0]}")/submit.sh" "$@"
