"""What the commands of `ds-quantize` do, a module for each that brings in much."""
