"""An OpenAI-compatible server over the same models, batches and proofs as the chat page."""
