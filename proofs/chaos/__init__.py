"""Real processes that publish and relay while somebody kills and stops them."""
