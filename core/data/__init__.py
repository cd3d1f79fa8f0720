"""The rows a model is trained on: where they come from, and how they become token ids."""
