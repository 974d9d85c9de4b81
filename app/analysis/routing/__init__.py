"""What the routers of a trained network decide, and what a decision is worth."""
