"""Real pictures with real names: OpenMoji emoji and what Unicode calls them."""
