"""The offline pipeline: recipe -> calibrate -> quantize -> evaluate -> build -> manifest."""
