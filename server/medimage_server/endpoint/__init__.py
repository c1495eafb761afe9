"""The drop-in HTTP endpoint: Azure's scoring contract in front of Triton."""
