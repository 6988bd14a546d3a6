"""Sizes that configuration and cost need without the tokenizer. Imports nothing."""

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
VOCABULARY = 1024
GROUPS = ("people", "things")
