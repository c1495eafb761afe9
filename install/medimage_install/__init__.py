"""What makes the package work without a checkout: where things lie, the demo, and what is wrong with a machine."""
