"""Labels of images: prompts, predictions, and how right these are."""
