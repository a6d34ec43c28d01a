"""Whether moving batch delay and slots while the server runs would pay: simulated, and measured."""
