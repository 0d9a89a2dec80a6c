"""What proof 3.8 measures besides rates."""
