"""What the steps of the model repository do, the start of Triton, and nothing that needs either to be tested."""
