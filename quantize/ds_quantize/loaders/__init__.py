"""Reading data: one module for each kind of source."""
