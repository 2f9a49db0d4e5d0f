"""What the toolkit costs, measured side by side with the same work done by hand: `make bench`."""
