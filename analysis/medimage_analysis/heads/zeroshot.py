"""A head made of texts: the vectors of its labels, each the mean direction of several prompts."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from medimage_analysis.heads.head import Head
from medimage_analysis.served import served_model
from medimage_analysis.table import Model, check_same_model
from medimage_client import MedImageInsight
from medimage_client.labels.prompts import read_prompts


def zero_shot_head(
    prompts: Mapping[str, Sequence[str]], encoder: Model, *, multilabel: bool, url: str, timeout: float
) -> Head:
    """The prompts of each label, embedded by the Triton at `url`.

    Args:
        encoder: of the vectors that it is for.

    Raises:
        OtherModel: that Triton serves another one.
        InvalidInput, MedImageError: as the client.
    """
    served = asyncio.run(served_model(url, "file"))
    check_same_model(
        {"the table": encoder, url: replace(served, windowing=encoder.windowing)}
    )  # of texts there is none
    texts = read_prompts(prompts, "{}")
    with MedImageInsight(url, timeout=timeout) as client:
        rows = client.score({"input_data": {"columns": ["text"], "data": [[text] for text in texts.texts]}})
    assert isinstance(rows, list)  # of the layout `rows`
    features = np.array([row["text_features"] for row in rows], np.float32)
    tensors = {
        "label_features": texts.by_label(features).astype(np.float32),
        "scaling_factor": np.array([rows[0]["scaling_factor"]], np.float32),
    }
    return Head("zeroshot", [*prompts], multilabel, encoder, tensors)
