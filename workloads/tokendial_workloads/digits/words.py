"""The words that questions and answers are made of. Imports nothing, so that lists and checks need no data packages."""

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
GROUPS = ("reading", "counting", "place")
CELLS = tuple(f"{row}{column}" for row in "abcd" for column in range(1, 5))
NUMBERS = ("zero", "one", "two", "three")
WORDS = (*(str(digit) for digit in range(10)), *CELLS, *NUMBERS, *("what", "is", "how", "many", "where"))

# text tokens before the first turn (<s>; the image slot is not text), and of a turn with its answer and </s>
OPENING_TOKENS = 1
TURN_TOKENS = 5
