"""Heads: from the vectors of the image encoder to a score for each label."""
