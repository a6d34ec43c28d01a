"""How long a model takes to be ready, and how much memory it then takes."""
