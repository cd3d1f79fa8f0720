"""Who may come in: passwords, guesses, sessions. No web framework; `studio.gate` asks here."""
