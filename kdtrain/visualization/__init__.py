"""What needs a network to be drawn, as arrays."""
