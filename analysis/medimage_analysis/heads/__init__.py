"""Heads: classifiers on frozen vectors, trained on one's own labels."""
