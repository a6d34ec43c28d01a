"""Tiers: a device, a gateway, a cloud. What a model is not sure of is asked of another's."""
