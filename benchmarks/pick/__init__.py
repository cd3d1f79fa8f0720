"""Does the pick hold? A study of the rule that chooses a checkpoint, on runs that it was not made for; README.md says how to rerun it."""
