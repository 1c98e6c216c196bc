"""Firewall rules on networks that the tests make themselves."""
