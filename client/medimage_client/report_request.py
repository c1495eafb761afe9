"""One study and how to report on it, checked and turned into a request of Triton."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medimage_client.azure import short
from medimage_client.errors import InvalidInput
from medimage_client.images.encoding import ImageInput, encode_image
from medimage_client.texts import check_text
from medimage_client.transport import Call

Mode = Literal["grounded", "findings", "phrase"]

# Fields of ReportRequest, input tensors of the models and columns of Azure's endpoint have the same names.
IMAGE_INPUTS = ("frontal_image", "lateral_image", "prior_image")
SECTIONS = ("indication", "technique", "comparison", "prior_report")
MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """Images, sections of the request form, and options; an empty section, or none, is not sent.

    Raises:
        InvalidInput: an option or a text is wrong, which it names. Images are looked at by `call`.
    """

    frontal_image: ImageInput = field(repr=False)
    lateral_image: ImageInput | None = field(default=None, repr=False)
    prior_image: ImageInput | None = field(default=None, repr=False)
    indication: str | None = field(default=None, repr=False)
    technique: str | None = field(default=None, repr=False)
    comparison: str | None = field(default=None, repr=False)
    prior_report: str | None = field(default=None, repr=False)
    mode: Mode = "grounded"
    phrase: str | None = field(default=None, repr=False)
    max_new_tokens: int | None = None
    constrained: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InvalidInput(f"mode is {short(self.mode)}; expected one of {list(get_args(Mode))}")
        if self.frontal_image is None:
            raise InvalidInput("frontal_image is None; expected an image")
        for name in (*SECTIONS, "phrase"):
            text = getattr(self, name)
            if text is not None:
                check_text(text, column=name)
        if self.mode == "phrase" and not (self.phrase and self.phrase.strip()):
            raise InvalidInput("phrase is empty; mode 'phrase' needs the finding to locate")
        if self.mode != "phrase" and self.phrase:
            raise InvalidInput(f"phrase is given and mode is {self.mode!r}; expected mode 'phrase', or no phrase")
        n = self.max_new_tokens
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= MAX_INT32):
            raise InvalidInput(f"max_new_tokens is {short(n)}; expected a whole number above 0, or None")

    def call(self, model: str, output_names: tuple[str, ...]) -> Call:
        """The request of Triton; reads and encodes the images.

        Raises:
            InvalidInput: its column is that of the image at fault, `lateral_image: …`.
        """
        inputs = {name: tensor(self._encode(name)) for name in IMAGE_INPUTS if getattr(self, name) is not None}
        inputs |= {name: tensor(text) for name in (*SECTIONS, "mode", "phrase") if (text := getattr(self, name))}
        if self.max_new_tokens is not None:
            inputs["max_new_tokens"] = np.array([self.max_new_tokens], dtype=np.int32)
        return Call(model, inputs, output_names, {"constrained": True} if self.constrained else {})

    def _encode(self, name: str) -> bytes:
        try:
            return encode_image(getattr(self, name))
        except InvalidInput as error:
            raise error.at(column=name) from error


def tensor(value: bytes | str) -> NDArray[Any]:
    return np.array([value], dtype=np.object_)
