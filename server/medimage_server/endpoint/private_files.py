"""Files that the user who serves should have for itself: keys of callers, the key of TLS, the access log."""

import os
import shlex
import stat
from pathlib import Path

CREDENTIALS = Path("/run/credentials")


def open_private(path: str, flags: int) -> int:
    """The `opener` of `open()` for a file that is made for this user alone if it is not there yet."""
    return os.open(path, flags, 0o600)


def warning_of(file: Path) -> str | None:
    """What to tell the operator of a file that others may read or change; None for one in order.

    The group's rights count where the file is ours. Else they are how we read it, as with a file of root's for the
    group of a service, or a secret of Kubernetes. Nor do they count for systemd's LoadCredential: in its folder, which
    is private, they stand for an access list that names our user alone.
    """
    status = file.stat()
    is_ours = status.st_uid == os.geteuid()
    rights = 0o066 if is_ours and CREDENTIALS not in file.resolve().parents else 0o006
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & rights:
        return None
    mend = f"chmod 600 {shlex.quote(str(file))}"
    return f"warning: {file} is open to others; {mend if is_ours else f'give it to the user who serves, and {mend}'}"
