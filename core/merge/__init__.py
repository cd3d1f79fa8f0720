"""Merging an adapter into its base model, and proving that the result answers as the adapter did."""
