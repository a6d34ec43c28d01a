"""One class for each method: what a recipe may say of it. The work is in the handler it names."""
