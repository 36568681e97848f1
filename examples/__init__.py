"""Ways of using optwrap, each a program of its own."""
