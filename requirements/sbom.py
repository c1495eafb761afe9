"""Write the bill of materials of a release, in CycloneDX: what the package carries, and what is installed with it.

`make release` runs this. Run: python requirements/sbom.py FILE
"""

import re
import sys
import tomllib
from pathlib import Path

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

FOLDER = Path(__file__).parent
LOCKS = ("runtime", "cuda")  # what exports and serves, as a checkout installs it from PyPI
PACKAGE = re.compile(r"^([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)
SWAGGER_UI = FOLDER.parent / "server" / "medimage_server" / "endpoint" / "swagger_ui" / "SHA256SUMS"


def main(path: Path) -> None:
    text = JsonV1Dot6(bill_of_materials()).output_as_string(indent=2)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"{path}: not as CycloneDX 1.6 has it: {error}")
    path.write_text(text + "\n", encoding="utf-8")


def bill_of_materials() -> Bom:
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bom = Bom()
    bom.metadata.component = component = of_registry(ComponentType.APPLICATION, project["name"], project["version"])
    parts = [swagger_ui()]
    for lock in LOCKS:
        text = (FOLDER / f"{lock}.lock").read_text(encoding="utf-8")
        parts += [package(*match.groups()) for match in PACKAGE.finditer(text)]
    bom.components.update(parts)
    bom.register_dependency(component, parts)
    return bom


def of_registry(kind: ComponentType, name: str, version: str, registry: str = "pypi") -> Component:
    purl = PackageURL(registry, name=name, version=version)
    return Component(type=kind, name=name, version=version, purl=purl, bom_ref=str(purl))


def package(name: str, version: str, hashes: str) -> Component:
    """With the hashes of all its files, of which a machine installs one."""
    part = of_registry(ComponentType.LIBRARY, name, version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(f"https://pypi.org/project/{name}/{version}/#files"),
        hashes=[HashType.from_composite_str(one) for one in re.findall(r"sha256:[0-9a-f]{64}", hashes)],
    )
    part.external_references.add(files)
    return part


def swagger_ui() -> Component:
    """What the wheel has of another project; its first line names the version."""
    name, version = SWAGGER_UI.read_text(encoding="utf-8").split()[1:3]
    return of_registry(ComponentType.LIBRARY, name, version, "npm")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
