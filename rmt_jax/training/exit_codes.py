"""How a run ends, as a number; docs/training.md explains them, and launch/ acts on them."""

DONE = 0
FAILED = 1  # by an error of the run, which would come again
BAD_INPUT = 2  # something to mend in what was given
TRY_AGAIN = 75  # by something that passes, sysexits' EX_TEMPFAIL: the same command may go on
INTERRUPTED = 130  # saved after Ctrl-C
PREEMPTED = 143  # saved after another signal, or the platform's notice


class TryAgainError(RuntimeError):
    """What is in the way of a run now may be gone soon; nothing has to be mended."""
