"""A proof: legs, ledger, tolerance, and the checks that judge them."""
