"""The process that clients talk to: front-ends over one Gateway object. It holds no model."""
