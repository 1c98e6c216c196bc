"""Where the stack runs: its containers, or its processes."""
