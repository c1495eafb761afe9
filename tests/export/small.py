"""A small model with every trap of the full-size one: four stages, padded windows, several heads and groups."""

from medimage_export.config import DaViTConfig, MedImageInsightConfig, TextConfig

SMALL = MedImageInsightConfig(
    DaViTConfig(embed_dims=(16, 32, 64, 128), num_heads=(2, 4, 8, 16), num_groups=(2, 4, 8, 16), depths=(1, 1, 2, 1)),
    TextConfig(width=64, heads=4, layers=2, vocab_size=600),
    projection_dim=1024,
)
