"""Base models: where they are, what their headers say, and the one that comes with Sweetspot."""
