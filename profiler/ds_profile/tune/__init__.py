"""The search for the configuration with the highest rate under a latency limit."""
