"""How processes talk: ZeroMQ links over ipc:// and the messages that travel on them."""
