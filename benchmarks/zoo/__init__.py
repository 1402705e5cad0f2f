"""What conversion makes of every network of a zoo."""
