"""Commands of `medimage` about tables of embeddings; what they import is loaded when they are run."""
