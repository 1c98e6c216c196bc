"""Watching a stack that serves: what is scraped, what is alarming, what a dashboard shows."""
