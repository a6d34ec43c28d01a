"""/v1/files and /v1/batches: a process that keeps files, and runs the requests in them."""
