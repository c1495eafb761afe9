"""The `medimage` command. Its commands are in files of their own; `plugins.py` adds those of other packages."""

import sys


def main() -> None:
    try:
        from medimage_client.cli.group import medimage
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("Error: the command line needs click: pip install 'medimage-triton[cli]'")
    medimage()
