"""The commands: thin typed functions over `tokendial.api`, one module per part."""
