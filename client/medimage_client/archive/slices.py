"""The images of studies one by one, as they are embedded: of each series all, or some of its slices."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np

from medimage_client.archive.studies import Instance, Series, Studies
from medimage_client.errors import InvalidInput
from medimage_client.images.encoding import ImageInput, encode_image
from medimage_client.images.windowing import DicomWindow

WHICH = re.compile(r"(?P<all>all)|every=(?P<every>[1-9][0-9]{0,5})|centre=(?P<centre>[0-9]{1,6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One image of a series, or of a volume that is no DICOM and has no UIDs."""

    name: str
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    frame: int | None = None  # of a multi-frame object, from 0
    position: tuple[float, ...] | None = None  # (3,) mm in the patient, x to the left, y to the back, z to the head
    read: Callable[[DicomWindow], ImageInput] = field(repr=False, compare=False)  # the window is for frames


@dataclass(frozen=True, slots=True)
class WhichSlices:
    """Which slices of a series: all, each n-th from the first, or the middle one with as many before and after it."""

    every: int = 1
    centre: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """`all`, `every=N` or `centre=N`.

        Raises:
            InvalidInput: anything else.
        """
        found = WHICH.fullmatch(text)
        if found is None:
            raise InvalidInput(f"{text!r} is not all, every=N (N from 1) or centre=N")
        return cls(int(found["every"] or 1), None if found["centre"] is None else int(found["centre"]))

    def of(self, n: int) -> range:
        """Indices of `n` slices."""
        if self.centre is None:
            return range(0, n, self.every)
        return range(max(0, n // 2 - self.centre), min(n, n // 2 + self.centre + 1))


def slices_of(studies: Studies, which: WhichSlices | None) -> list[Slice]:
    """In the order of the studies; without `which` the first frame of each object, with it each frame is a slice."""
    return [one for study in studies.studies for series in study.series for one in slices_of_series(series, which)]


def slices_of_series(series: Series, which: WhichSlices | None) -> list[Slice]:
    if which is None:
        return [slice_of(instance, None) for instance in series.instances]
    slices = [slice_of(instance, frame) for instance in series.instances for frame in frames_in_order(instance)]
    return [slices[index] for index in which.of(len(slices))]


def frames_in_order(instance: Instance) -> Sequence[int | None]:
    """By position along the normal where every frame has one."""
    if instance.n_frames == 1:
        return [None]
    frames = list(range(instance.n_frames))
    if instance.orientation is None or len(instance.frame_positions) != instance.n_frames:
        return frames
    normal = np.cross(instance.orientation[:3], instance.orientation[3:])
    depths = np.array(instance.frame_positions) @ normal
    return sorted(frames, key=lambda frame: round(float(depths[frame]), 3))


def slice_of(instance: Instance, frame: int | None) -> Slice:
    positions = instance.frame_positions
    return Slice(
        name=instance.name if frame is None else f"{instance.name}#{frame}",
        study_uid=instance.study_uid,
        series_uid=instance.series_uid,
        sop_uid=instance.sop_uid,
        frame=frame,
        position=instance.position if frame is None or frame >= len(positions) else positions[frame],
        read=partial(read_frame, instance, frame),
    )


def read_frame(instance: Instance, frame: int | None, dicom_window: DicomWindow) -> bytes:
    """The object, which is shown when it is embedded; of several frames one as it is shown."""
    file = instance.read()
    return file if frame is None else encode_image(file, frame=frame, dicom_window=dicom_window)
