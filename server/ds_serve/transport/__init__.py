"""How processes talk: links over Unix sockets, and the messages that travel on them."""
