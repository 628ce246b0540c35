"""Where outputs lie."""

import os

from batchseg import storage

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def is_submitted_job() -> bool:
    """True inside `ray job submit`."""
    return JOB_VARIABLE in os.environ


def resolve_output(location: str) -> str:
    """The absolute place of an output. In a submitted job relative ones lie under $BATCHSEG_HOME (~/batchseg).

    The working directory of such a job is a copy that is thrown away.
    """
    if is_submitted_job() and not storage.is_remote(location) and not os.path.isabs(os.path.expanduser(location)):
        home = os.environ.get("BATCHSEG_HOME") or "~/batchseg"
        return storage.to_absolute(os.path.join(os.path.expanduser(home), location))
    return storage.to_absolute(location)
