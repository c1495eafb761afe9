"""What `medimage serve` was attacked with, each attack a command: `python -m tests.attacks NAME --repository DIR`.

The repository is one with both phantoms exported. Each attack starts a service of its own and prints a line for each
thing it tries. They run as root, which can become another user and mount file systems, and also against older versions,
where Triton listens on ports beside the endpoint.
"""

from tests.attacks import attackers, bad_luck  # noqa: F401  # which make the commands
from tests.attacks.service import attacks

attacks()
