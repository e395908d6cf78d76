"""Generation engines, and the runner and pools that play episodes with them."""
