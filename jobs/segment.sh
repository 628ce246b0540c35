#!/usr/bin/env bash
# Segments a folder on a running Ray cluster: sends this folder (the code, not runs/ or .venv/) and shows the log.
#
# command:  jobs/segment.sh /shared/photos --model /shared/batchseg/runs/fields/bundle --out runs/photos
#           All arguments go to `batchseg segment`. The same line again does only what is missing.
# hardware: that of the cluster
# time, score: not run here
#
# Where to, token, exit, needs: as in jobs/submit.sh. Exit 1 may mean that a few images failed (batchseg's own exit
# code 3, named in the last line of the log); their rows are in OUT/rows/status=error.
# Paths:     INPUT and --model absolute, at the same path on every node. --model must be given the first time: the job
#            runs in a copy of this folder, which has no runs/. A relative --out lies under $BATCHSEG_HOME of the cluster.
set -euo pipefail
BATCHSEG_MODULE=batchseg.segment exec "$(dirname "${BASH_SOURCE[0]}")/submit.sh" "$@"
