"""How the phantom checkpoints were trained; it runs from a checkout, and no package has it."""
