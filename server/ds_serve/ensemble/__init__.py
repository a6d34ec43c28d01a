"""Ensembles: models that are made of other models, without a process of their own."""
