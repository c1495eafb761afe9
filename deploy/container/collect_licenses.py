"""Copy the licence files of all that is installed in this environment into one folder, a subfolder for each package."""

import re
import shutil
import sys
from importlib.metadata import distributions
from pathlib import Path

LICENCE = re.compile(r"(licen[cs]e|notice|copying|copyright|third.?party)", re.IGNORECASE)


def main() -> None:
    folder = Path(sys.argv[1])
    for distribution in distributions():
        for file in distribution.files or []:
            path = Path(str(distribution.locate_file(file)))
            if LICENCE.match(file.name) and file.suffix not in {".py", ".pyc"} and path.is_file():
                place = folder / distribution.name / "_".join(file.parts[1:])
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)


if __name__ == "__main__":
    main()
