"""Model repositories: folders of models in Triton's layout."""
