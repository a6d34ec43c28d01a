"""The parent of all processes: spawns, watches, restarts and drains them."""
