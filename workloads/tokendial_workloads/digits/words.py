"""The words that questions and answers are made of. Imports nothing, so that lists and checks need no data packages."""

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
GROUPS = ("reading", "counting", "place")
ROWS = ("a", "b", "c", "d")
CELLS = tuple(f"{row}{column}" for row in ROWS for column in range(1, 5))
NUMBERS = ("zero", "one", "two", "three", "four")
WORDS = (*(str(digit) for digit in range(10)), *ROWS, *CELLS, *NUMBERS, "what", "is", "how", "many", "odd", "where")

# text tokens before the first turn (<s>; the image slot is not text), and of the longest turn with its answer and </s>
OPENING_TOKENS = 1
TURN_TOKENS = 6
