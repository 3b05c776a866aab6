"""What every room builds on, and which builds on none of them."""
