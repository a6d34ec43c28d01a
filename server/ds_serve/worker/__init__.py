"""The process that holds one engine: a scheduler in front of it, links to the gateways."""
