"""A small model with every trap of the full-size one: four stages, padded windows, several heads and groups."""

from dataclasses import replace

import torch

from medimage_export.medimageinsight.config import DaViTConfig, MedImageInsightConfig, TextConfig

SMALL = MedImageInsightConfig(
    DaViTConfig(embed_dims=(16, 32, 64, 128), num_heads=(2, 4, 8, 16), num_groups=(2, 4, 8, 16), depths=(1, 1, 2, 1)),
    TextConfig(width=64, heads=4, layers=2, vocab_size=600),
    projection_dim=1024,
)
WIDE = MedImageInsightConfig(  # as wide as the full-size one is, where rows lie whole pages apart
    DaViTConfig(
        image_size=(48, 32),
        patch_size=(7,),
        patch_stride=(4,),
        patch_padding=(3,),
        patch_prenorm=(False,),
        embed_dims=(1024,),
        num_heads=(32,),
        num_groups=(32,),
        depths=(1,),
    ),
    TextConfig(width=1024, heads=16, layers=2, vocab_size=600),
)
END = SMALL.text.vocab_size - 1


def small_config(image_size: tuple[int, int], stages: int = 4) -> MedImageInsightConfig:
    """SMALL for another size of image, with the first stages of its image encoder alone."""
    tuples = {name: values for name, values in vars(SMALL.image).items() if isinstance(values, tuple)}
    per_stage = {name: values[:stages] for name, values in tuples.items() if len(values) == len(SMALL.image.depths)}
    return replace(SMALL, image=replace(SMALL.image, image_size=image_size, **per_stage))


def random_texts(lengths: list[int], *, pad: int = END) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of texts of the given numbers of tokens, the end token among them, padded to the context length."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.full((len(lengths), SMALL.text.context_length), pad)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(0, END - 1, (length,), generator=generator)
        ids[row, length - 1] = END
        mask[row, :length] = 1
    return ids, mask
