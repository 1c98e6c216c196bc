"""The user's decisions."""
