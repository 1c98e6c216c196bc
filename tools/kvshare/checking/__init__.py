"""What a check is, and how its outcome is shown."""
