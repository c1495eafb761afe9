"""To a server and back: gRPC, HTTP and scoring URIs, retries, shared memory, and errors as ours."""
