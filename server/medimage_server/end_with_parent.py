"""`python -m medimage_server.end_with_parent PARENT COMMAND…`: become COMMAND, which ends when its parent is killed.

For a server that is not ours to change. The kernel sends it SIGTERM when the thread that started it is no more, so it
still ends in good order: what it shares in memory is removed.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; outlives exec


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() == parent:  # else it was killed before
        os.execv(command[0], command)


if __name__ == "__main__":
    main()
