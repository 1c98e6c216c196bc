"""What the stack is made of: members, ports, firewall rules."""
