"""What is done with embeddings: tables of them, and what is found and measured in those."""
