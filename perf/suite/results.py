"""The JSON of a run, written after each case, so that a run that is stopped leaves what it measured."""

import json
from pathlib import Path

from perf.machine import installed_version, machine
from perf.suite.device import Device


class Results:
    """A nested dict with a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, dict] = {}

    def put(self, section: str, **values: object) -> None:
        """Add to a section and write the file whole."""
        self.content.setdefault(section, {}).update(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=2) + "\n")
        partial.replace(self.path)


def about(device: Device) -> dict[str, object]:
    """The machine, and the versions of what is measured."""
    return machine() | {"device": device.name, "openvino": installed_version("openvino")}
