"""What a pull costs beside computing, and from which length on it pays."""
