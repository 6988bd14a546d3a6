"""tokendial: vision-language models whose number of visual tokens is a dial."""

__version__ = "0.1.0"
