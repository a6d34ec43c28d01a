"""Who may ask for what, how often, and over which connections; free of any front-end."""
