"""Chest X-ray reports: asked for, read, drawn and scored."""
