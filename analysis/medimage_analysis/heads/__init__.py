"""Heads: classifiers on frozen vectors, trained on one's own labels."""

from typing import Literal, get_args

Kind = Literal["mlp", "linear", "knn", "zeroshot"]
KINDS: tuple[Kind, ...] = get_args(Kind)
