"""How throughput grows with --gateways."""
