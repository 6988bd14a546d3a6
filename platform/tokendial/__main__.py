"""`python -m tokendial`."""

from tokendial.cli import main

main()
