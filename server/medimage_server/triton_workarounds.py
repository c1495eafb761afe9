"""Faults of Triton, and what its models and its launcher do about them.

The form is that of `medimage_client/wire/triton_workarounds.py`, where the faults are that a client meets. These cannot
be there: they need the run's folder, or Triton's processes. A model inside Triton is not told its version, so nothing
here is switched by it. A workaround can go when what shows the fault passes without it on the oldest Triton in use.

| fault | seen in | fixed in | public issue | workaround | shown by, in tests/triton |
|---|---|---|---|---|---|
| steps go on | 2.51 | not known | server#6739 | `is_given_up`, below | test_endpoint_faults.py |
| BLS loses codes | 2.51 | not known | server#7804 | bls.py | test_reports.py |
| BLS has no cancel | 2.51 | 2.57 | python_backend#398 | `is_given_up`, below | test_reports.py |
| lost process | 2.51 | not known | server#8604 | launcher.py | test_endpoint_faults.py |
| no model.py | 2.51 | not known | none | model_repository.py | a start of Triton without one |
| stuck start | 2.51 | not known | none | launcher.py | test_launcher.py |
| late request | 2.51 | not known | none | text_tokenizer/config.pbtxt | perf/NOTES.md |

Steps go on: the end of a call is not passed on to the steps of an ensemble that have begun, not even to one that still
waits in a queue. So a call has a number, a parameter that Triton hands to every step. Who gives the call up, the
endpoint or a model, leaves a file of that number in the run's folder.

BLS loses codes: an error of a model that another model calls always has the code INTERNAL. It is told by its text.

BLS has no cancel: a model cannot cancel its call of another, so such a call has a number, too. Newer Tritons can cancel
the call of a decoupled model, which `cxrreportgen_stream` is.

Lost process: where the process of a Python model has gone, Triton neither starts it again nor calls the model not
ready (newer ones do the latter, server#8552). Requests to it fail from then on, and reports under way never end. So all
of Triton is started again.

No model.py: Triton does not fail on it but waits for ever for the process that cannot start.

Stuck start: while a model is loaded its process must show within each second that it runs. One that could not, on a
busy machine, is given up, but as it lives its end is waited for, without a limit. So is the first word of a process
that has ended before it. The launcher sees either from outside, and starts Triton again.

Late request: Triton at times overlooks a request that comes just as the only instance gets free, until it looks again
after 500 ms: 4 of 600 requests one after the other on a busy machine, none with two instances.
"""

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from medimage_server.heartbeat import FOLDER_VARIABLE

PARAMETER = "medimage_call"  # of a request: its number


def new_number() -> int:
    return secrets.randbits(62)


def file_of(folder: Path, number: int) -> Path:
    """That a call was given up."""
    return folder / f"given-up-{number:x}"


def number_of(parameters: Mapping[str, object]) -> int | None:
    """The number of the request with these parameters, if it has one."""
    number = parameters.get(PARAMETER)
    return number if type(number) is int and number >= 0 else None


def is_given_up(parameters: Mapping[str, object]) -> bool:
    """In a Python model: whether the request with these parameters is part of a call that was given up."""
    number = number_of(parameters)
    return number is not None and file_of(models_folder(), number).exists()


def models_folder() -> Path:
    """Where the Python models look; there is no run's folder where another launcher has started Triton."""
    return Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir())
