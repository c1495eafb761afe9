"""Put the backends that `medimage serve` composes at each start into the image, for good.

So nothing is copied when the container starts, and its /tmp needs no permission to execute.
"""

import shutil
import tempfile
from pathlib import Path

from medimage_server.installation import compose_backends, find_triton


def main() -> None:
    installation = find_triton()
    with tempfile.TemporaryDirectory() as folder:
        backends = compose_backends(installation, Path(folder))
        if backends != installation.backends:
            shutil.copytree(backends, installation.backends, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
