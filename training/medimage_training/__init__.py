"""Fine-tuning of MedImageInsight: from a published checkpoint folder to a folder of the same layout."""
