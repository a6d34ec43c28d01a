"""The same models on a Ray cluster: Ray Serve runs the replicas, this server answers for them."""
