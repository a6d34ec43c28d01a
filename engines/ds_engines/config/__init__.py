"""Triton's model configuration, part by part; ds_engines.config_pbtxt puts them together."""
