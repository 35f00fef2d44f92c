"""What is said when jax aborts this process, because process 0, which serves the coordination, is gone.

jax does so from a thread of its own within milliseconds, too fast for any Python of this process. But faulthandler
still writes on an abort: to a small program beside this one, which then says what it means.
"""

import faulthandler
import subprocess
import sys
from typing import Any

# Not at the end of its input: processes forked from this one keep the pipe open.
_PROGRAM = """
import sys
for line in sys.stdin:
    if line.startswith("Fatal Python error: Aborted"):
        sys.exit(sys.argv[1])
    sys.stderr.write(line)
"""


class Witness:
    """While active, an abort of this process is followed by `message` on standard error, in place of all stacks.

    Other crashes (a segmentation fault) are passed on as faulthandler reports them.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._program: subprocess.Popen[Any] | None = None

    def __enter__(self) -> "Witness":
        # In a session of its own, so that Ctrl-C leaves it alone: it ends with this process.
        self._program = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, self._message], stdin=subprocess.PIPE, start_new_session=True
        )
        assert self._program.stdin is not None
        faulthandler.enable(self._program.stdin)
        return self

    def __exit__(self, *error: object) -> None:
        faulthandler.enable(sys.__stderr__ or 2)
        if self._program is not None and self._program.stdin is not None:
            self._program.stdin.close()
            self._program.terminate()  # it may not see the end, see above
            self._program.wait()
