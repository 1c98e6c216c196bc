"""What the servers say, and how to ask them."""
