"""Images of any kind to the bytes that the model takes."""
