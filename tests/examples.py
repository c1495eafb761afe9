"""The fenced blocks of README.md and of the pages in docs/: which are run as they stand there, and which are not.

tests/triton/test_readme.py runs them; tests/test_docs.py sees to it that each stands in one of the two tables.
"""

import re
from typing import NamedTuple

from tests.paths import ROOT

FENCE = re.compile(r"^```([^`\n]*)\n(.*?)^```$|^(#+ [^\n]*)$", re.MULTILINE | re.DOTALL)
CODE = ("bash", "python")

# by page and heading: how many blocks of code stand there
RUN = {
    ("README.md", "## Two commands"): 1,
    ("README.md", "## Your own checkpoint"): 1,
    ("README.md", "## Python"): 2,
    ("README.md", "## Moving from Azure"): 1,
    ("docs/quickstart.md", "## Run the demo"): 1,
    ("docs/quickstart.md", "## Serve the phantom checkpoints"): 2,
    ("docs/checkpoints.md", "## MedImageInsight"): 1,
    ("docs/client.md", "## MedImageInsight"): 1,
    ("docs/client.md", "### Large images"): 1,
    ("docs/client.md", "## CXRReportGen"): 1,
    ("docs/cli.md", "## Embeddings and labels"): 1,
    ("docs/cli.md", "## Reports"): 1,
    ("docs/tables.md", "## From a folder to a table"): 2,
    ("docs/search.md", "## A worked example"): 2,
    ("docs/search.md", "## From Python"): 1,
    ("docs/heads.md", "## Images to try it with"): 1,
    ("docs/heads.md", "## Train, and compare"): 1,
    ("docs/heads.md", "## Serve it"): 3,
    ("docs/structured_reports.md", "## From the command line"): 1,
    ("docs/structured_reports.md", "## From Python"): 1,
    ("docs/structured_reports.md", "## Where the boxes are"): 1,
    ("docs/evaluation.md", "## Images to try it with"): 1,
    ("docs/evaluation.md", "## Label images, and score the labels"): 2,
    ("docs/evaluation.md", "## The model card's table of your own data"): 1,
    ("docs/evaluation.md", "## Embed them"): 1,
    ("docs/evaluation.md", "## Outliers"): 1,
    ("docs/evaluation.md", "## A map"): 1,
    ("docs/endpoint.md", "## Start it"): 3,
    ("docs/endpoint.md", "### The documentation's sample"): 1,
    ("docs/endpoint.md", "### Code with MLClient"): 2,
    ("docs/endpoint.md", "### curl to the endpoint"): 2,
    ("docs/endpoint.md", "### The Python client against the endpoint"): 1,
    ("docs/models.md", "### curl"): 2,
    ("docs/models.md", "### gRPC with NVIDIA's own client"): 1,
    ("docs/models.md", "### Report with curl"): 2,
    ("docs/security.md", "## What lies where, and for how long"): 1,
}
NOT_RUN = {
    **dict.fromkeys(
        [
            ("docs/archive.md", heading)
            for heading in ("## See what is there", "## Report a study", "## Embed volumes", "## Python")
        ],
        "wants an archive; tests/client/test_orthanc.py runs the like",
    ),
    ("docs/finetuning.md", "# Fine-tuning"): "installs an extra that is installed",
    **dict.fromkeys(
        [
            ("docs/finetuning.md", heading)
            for heading in ("## A worked example", "## Your data", "## The classifier package")
        ],
        "trains for minutes; tests/training runs the like, smaller",
    ),
    ("docs/finetuning.md", "## Several GPUs, and going on"): "wants several GPUs; tests/training has two processes",
    ("docs/bf16.md", "# bf16 on CPUs"): "installs a package, and wants a CPU that multiplies bf16",
    ("docs/install.md", "# Install without a checkout"): "installs; tests/test_release.py does it",
    ("docs/install.md", "## Triton's own environment"): "installs; tests/test_release.py does it",
    ("docs/install.md", "## What is wrong?"): "is of the machine; tests/test_doctor.py runs it",
    **dict.fromkeys(
        [
            ("docs/containers.md", heading)
            for heading in ("## Build and run", "## GPU", "## Compose: with Prometheus and Grafana")
        ],
        "wants a container engine and a registry of images; tests/deploy holds the files to the code",
    ),
    **dict.fromkeys(
        [("docs/clusters.md", f"## {name}") for name in ("Kubernetes", "KServe", "Azure Machine Learning", "Slurm")],
        "wants a cluster; tests/deploy holds the files to schemas and to the code",
    ),
    ("docs/models.md", "### GPU"): "replaces a package, and wants a GPU",
    ("docs/search.md", "## Volumes and studies"): "wants volumes; tests/analysis/test_search_command.py runs the like",
    ("docs/search.md", "## Object storage"): "wants one; tests/analysis/test_index.py has a stand-in",
    ("docs/security.md", "## Under systemd"): "wants root and systemd",
}


class Block(NamedTuple):
    """A fenced block, with the heading that it stands under."""

    heading: str
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found, heading = [], ""
    for match in FENCE.finditer((ROOT / page).read_text(encoding="utf-8")):
        language, text, new_heading = match.groups()
        if new_heading is None:
            found.append(Block(heading, language, text))
        else:
            heading = new_heading
    return found


def examples(page: str, heading: str) -> list[str]:
    """The blocks under a heading, each a command or code or what it prints; subheadings are not looked at."""
    assert (page, heading) in RUN
    found = [block.text for block in blocks_of(page) if block.heading == heading]
    assert found, f"no example under {heading} of {page}"
    return found
