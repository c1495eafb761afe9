"""Images that would take minutes and gigabytes, asked of a real Triton: each is refused, its neighbours are served."""

import os
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.server.hostile_files import PICTURE, bmp_bombs, encode, pnm_bombs, tiff_bombs
from tests.triton.processes import command_line, descendants, shared_memory
from tests.triton.requests import Answers, bytes_input, embed_images
from tests.waiting import wait_until

GOOD = encode(PICTURE, "PNG")
TOLERANCE = 1e-5  # on numbers of unit vectors


def image_processes(server):
    return [pid for pid in descendants(server.process.pid) if "image_process_child" in command_line(pid)]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (dict(pnm_bombs())["a-megabyte-of-comments-in-a-plain-one"](), "plain or bitmap PNM files are not read"),
        (dict(tiff_bombs())["8-million-strips"](), "TIFF file has more strips than the 8 of one row each"),
        (dict(bmp_bombs())["codes-that-give-no-pixel"](), "image takes more than 5 s of computing time to decode"),
    ],
    ids=["comments", "strips", "endless-codes"],
)
def test_image_that_costs_too_much_is_refused_by_its_row_and_its_neighbours_are_served(triton, file, message):
    alone = embed_images(triton.grpc, [GOOD])
    answers = Answers(triton.grpc, "medimageinsight_image")
    answers.send("bad", [bytes_input("image", [GOOD, file])])
    for _ in range(4):
        answers.send("good", [bytes_input("image", [GOOD])])
    for key, result, error in answers.take(5):
        if key == "bad":
            assert error.status() == "StatusCode.INVALID_ARGUMENT"
            assert f"row 1: {message}" in error.message()
        else:
            np.testing.assert_allclose(result.as_numpy("image_features"), alone, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(embed_images(triton.grpc, [GOOD]), alone, rtol=0, atol=TOLERANCE)


def test_image_of_a_report_that_costs_too_much_is_refused(triton):
    file = dict(bmp_bombs())["codes-that-give-no-pixel"]()
    with pytest.raises(InferenceServerException, match=r"row 0: image takes more than 5 s of comp") as caught:
        triton.grpc.infer("cxr_image_preprocessing", [bytes_input("image", [file])])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_processes_for_images_hold_nothing_of_triton(triton):
    """Two instances of two models; one that has just been started still has Triton's log, for what stops its start."""
    own = ["/dev/null"] * 3 + ["/memfd", "pipe", "pipe"]
    wait_until(lambda: [held(pid) for pid in image_processes(triton.server)] == [own] * 4, what="no other descriptor")
    assert [shared_memory(pid) for pid in image_processes(triton.server)] == [set()] * 4


def held(pid):
    """What the descriptors of a process are; none of one that is just closing some."""
    try:
        return sorted(os.readlink(link).partition(":")[0] for link in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return []
