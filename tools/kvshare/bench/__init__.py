"""`kvshare bench`: what reuse is worth, honestly measured, and the length from which it pays."""
