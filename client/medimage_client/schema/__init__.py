"""Azure's JSON: requests to typed rows, results to its answers. Nothing here speaks to a server."""
