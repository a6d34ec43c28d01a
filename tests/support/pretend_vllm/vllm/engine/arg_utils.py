"""Where ds-serve looks which flags there are: "--shutdown-timeout"."""
