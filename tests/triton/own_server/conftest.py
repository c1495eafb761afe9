"""The model repository for servers that are started and broken again and again."""

import re
import shutil

import pytest


@pytest.fixture(scope="package")
def repository(repository, repository_of_run):
    """One process for each model, where two are served else: a start costs a third less, and a fault is the same."""

    def export(alone):
        shutil.copytree(repository, alone, dirs_exist_ok=True)
        for config in alone.glob("*/config.pbtxt"):
            config.write_text(re.sub(r"\bcount: \d+", "count: 1", config.read_text()))

    return repository_of_run("exported-alone", export)
