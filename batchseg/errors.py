"""What can go wrong in a way that its user can mend: one clear message, one exit code."""

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_STOPPED = 4
EXIT_INTERRUPTED = 130


_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


class UserError(Exception):
    """A wrong argument, config, data set or bundle. The message says what is wrong, what came, what is allowed."""

    exit_code = EXIT_USAGE


class StoppedError(Exception):
    """The run stopped before its end (a limit, a full disk); what is finished stays, the same command goes on."""

    exit_code = EXIT_STOPPED


class ImageError(Exception):
    """One image that cannot be used; becomes a row of its own and never stops a run.

    `kind` is one of the row's error kinds: missing, denied, read, decode, too_large, oom, write.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(kind, message)  # both in args, so that it survives pickling between processes
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


def describe_no_space(error: BaseException) -> StoppedError | None:
    """The StoppedError for an OSError that says the disk or the quota is full, None for any other error."""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return StoppedError(f"no space left: {error}. What is finished stays; make room, then run the same command")
    return None
