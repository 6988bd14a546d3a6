"""Mosaics, questions and source digits."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tokendial_workloads.digits import source
from tokendial_workloads.digits.config import DigitsData
from tokendial_workloads.digits.data import DigitsMosaics, Mosaics
from tokendial_workloads.digits.experiments import digits, tiny
from tokendial_workloads.digits.mosaic import CANVAS, GRID, draw_mosaic, mosaic_stream
from tokendial_workloads.digits.questions import QUESTIONS, Turn, evaluation_turns, training_turns
from tokendial_workloads.digits.source import digits_by_class, source_splits
from tokendial_workloads.digits.tokenizer import digits_tokenizer
from tokendial_workloads.digits.warp import warped
from tokendial_workloads.digits.words import GROUPS, NUMBERS, OPENING_TOKENS, TURN_TOKENS


def answer(question: str, cells: tuple[int, ...]) -> str:
    """An independent reading of the questions."""
    named = {row + column: cells[4 * i + j] for i, row in enumerate("abcd") for j, column in enumerate("1234")}
    match question.split():
        case ["what", "is", cell]:
            return str(named[cell])
        case ["how", "many", "odd", row]:
            return NUMBERS[sum(shown % 2 for cell, shown in named.items() if cell[0] == row)]
        case ["where", "is", digit]:
            [cell] = [cell for cell, shown in named.items() if shown == int(digit)]
            return cell
    raise AssertionError(question)


@pytest.fixture(scope="module")
def ink() -> list[np.ndarray]:
    return digits_by_class(source_splits()["train"])


def test_source_digits_are_split_60_20_20_without_a_shared_image() -> None:
    splits = source_splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 1078, "validation": 360, "test": 359}
    images = [set(split["sha256"]) for split in splits.values()]
    assert len(set.union(*images)) == sum(map(len, images)) == 1797


def test_every_answer_is_right(ink: list[np.ndarray]) -> None:
    for index in range(300):
        stream = mosaic_stream(0, "train", index)
        mosaic = draw_mosaic(stream, ink)
        for turn in [*training_turns(mosaic, stream, 6), *evaluation_turns(mosaic, stream)]:
            assert answer(turn.question, mosaic.cells) == turn.answer


def test_a_conversation_states_no_fact_twice(ink: list[np.ndarray]) -> None:
    """So a later answer cannot be copied from an earlier turn."""
    for index in range(300):
        stream = mosaic_stream(3, "train", index)
        turns = training_turns(draw_mosaic(stream, ink), stream, 10)
        assert len({turn.fact for turn in turns}) == 10


def test_warped_copies_keep_the_digit_and_follow_it(ink: list[np.ndarray]) -> None:
    """Originals first; copies resemble their original more than they do other digits of the class."""
    digits, copies = ink[3], warped(ink[3], 2)
    assert (copies[: len(digits)] == digits).all()
    assert (copies == warped(ink[3], 2)).all()
    assert warped(digits, 0) is digits
    made = copies[len(digits) :].reshape(len(digits), 2, 64)
    assert made.min() >= 0
    assert made.max() <= 1
    own = np.abs(made - digits.reshape(-1, 1, 64)).mean()
    others = np.abs(made - np.roll(digits, 1, axis=0).reshape(-1, 1, 64)).mean()
    assert 0 < own < 0.7 * others


def test_an_image_shows_the_digits_of_its_cells(ink: list[np.ndarray]) -> None:
    mosaic = draw_mosaic(mosaic_stream(1, "train", 0), ink)
    for place, digit in enumerate(mosaic.cells):
        top, left = 12 * (place // GRID), 12 * (place % GRID)
        cell = mosaic.ink[top : top + 12, left : left + 12]
        crops = [cell[y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
        assert any((ink[digit] == crop).all(axis=(1, 2)).any() for crop in crops)


def test_an_item_is_a_function_of_seed_split_and_index_alone() -> None:
    data = DigitsData(turns=3, text_tokens=30)
    first, again = Mosaics("train", 5, data), Mosaics("train", 5, data)
    _ = first[7]
    assert (first[3]["pixel_values"] == again[3]["pixel_values"]).all()
    assert (first[3]["input_ids"] == again[3]["input_ids"]).all()
    assert (first[3]["cells"] != Mosaics("train", 6, data)[3]["cells"]).any()
    assert (first[3]["cells"] != first[4]["cells"]).any()


def test_test_mosaics_are_the_same_for_every_seed() -> None:
    one, two = (Mosaics("test", seed, DigitsData())[11] for seed in (0, 1))
    assert one["turns"] == two["turns"]
    assert (one["pixel_values"] == two["pixel_values"]).all()


def test_the_first_mosaic_never_changes() -> None:
    example = Mosaics("test", 0, DigitsData())[0]
    assert example["cells"].tolist() == [0, 2, 0, 5, 8, 7, 0, 6, 3, 4, 9, 6, 8, 0, 3, 7]
    assert example["turns"] == [
        Turn("reading", "what is b1", "8"),
        Turn("counting", "how many odd c", "two"),
        Turn("place", "where is 4", "c2"),
    ]


def test_an_example_is_padded_and_only_answers_are_targets() -> None:
    example = Mosaics("train", 0, DigitsData(turns=2, text_tokens=24))[0]
    tokenizer = digits_tokenizer()
    assert example["pixel_values"].shape == (3, CANVAS, CANVAS)
    assert example["pixel_values"].dtype == np.float32
    assert {example[name].shape for name in ("input_ids", "attention_mask", "labels")} == {(25,)}
    assert (example["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")).sum() == 1
    assert OPENING_TOKENS + 1 < example["attention_mask"].sum() <= OPENING_TOKENS + 1 + 2 * TURN_TOKENS
    targets = example["labels"] != -100
    assert targets.sum() == 4
    assert (example["labels"][targets] == example["input_ids"][targets]).all()


def test_every_word_of_a_conversation_is_in_the_vocabulary(ink: list[np.ndarray]) -> None:
    tokenizer = digits_tokenizer()
    for index in range(200):
        stream = mosaic_stream(2, "train", index)
        for turn in training_turns(draw_mosaic(stream, ink), stream, 6):
            ids = tokenizer.encode(f"{turn.question} {turn.answer} </s>")
            assert tokenizer.unk_token_id not in ids
            assert len(ids) <= TURN_TOKENS


def test_the_chat_template_renders_what_training_reads() -> None:
    turn = Turn("reading", "what is b3", "7")
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turn.question}]}
    text = digits_tokenizer().apply_chat_template([user, {"role": "assistant", "content": turn.answer}], tokenize=False)
    assert text == "<s> <image> what is b3 7 </s>"


def test_case_and_punctuation_of_a_question_do_not_matter() -> None:
    tokenizer = digits_tokenizer()
    assert tokenizer.encode("What is B3?") == tokenizer.encode("what is b3")
    assert tokenizer.decode(tokenizer.encode("Who is b3?")) == "<unk> is b3"


def test_evaluation_asks_one_question_of_each_type() -> None:
    example = Mosaics("validation", 0, DigitsData())[4]
    assert tuple(turn.group for turn in example["turns"]) == GROUPS == tuple(QUESTIONS)


def test_answers_are_spread_over_their_values(ink: list[np.ndarray]) -> None:
    """No constant answer is right for more than half of a type's questions (4,000 mosaics)."""
    answers: dict[str, list[str]] = {group: [] for group in GROUPS}
    for index in range(4000):
        stream = mosaic_stream(0, "validation", index)
        for turn in evaluation_turns(draw_mosaic(stream, ink), stream):
            answers[turn.group].append(turn.answer)
    share = {group: max(map(given.count, set(given))) / len(given) for group, given in answers.items()}
    assert share["reading"] < 0.13
    assert share["counting"] < 0.4
    assert share["place"] < 0.09


def test_collate_stacks_arrays_and_lists_the_rest() -> None:
    data = DigitsMosaics()
    split = data.datasets(tiny())["test"]
    batch = data.collate([split[0], split[1]])
    assert batch["pixel_values"].shape == (2, 3, CANVAS, CANVAS)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["source"] == ["test/0", "test/1"]
    assert len(batch["turns"][0]) == 3


def test_digests_name_the_data_and_only_train_follows_the_seed() -> None:
    data, config = DigitsMosaics(), digits()
    one, two = data.digests(config), data.digests(config.model_copy(update={"seed": 1}))
    assert one["test"] == two["test"]
    assert one["train"] != two["train"]
    assert len({*one.values()}) == 3


def test_an_item_takes_less_than_a_millisecond() -> None:
    """The best of five tries in processor time, so that a busy machine does not fail it."""
    split = Mosaics("train", 0, DigitsData())
    times_ms = []
    for attempt in range(5):
        start = time.process_time()
        for index in range(100):
            split[100 * attempt + index]
        times_ms.append((time.process_time() - start) * 10)
    assert min(times_ms) < 1


def write_folder(root: Path, images_per_class: int) -> None:
    random = np.random.default_rng(0)
    for digit in range(10):
        (root / str(digit)).mkdir(parents=True)
        for number in range(images_per_class):
            pixels = random.integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(pixels).save(root / str(digit) / f"{number}.png")


def test_the_embedded_digits_are_those_of_scikit_learn() -> None:
    ink, labels = source._embedded()
    values, classes = load_digits(return_X_y=True)
    assert np.array_equal(ink.reshape(len(ink), -1), np.round(np.asarray(values) * (255 / 16)))
    assert np.array_equal(labels, classes)


def test_a_folder_of_labelled_images_replaces_the_embedded_digits(tmp_path: Path) -> None:
    write_folder(tmp_path, 10)
    splits = source_splits(str(tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 60, "validation": 20, "test": 20}
    mosaics = Mosaics("train", 0, DigitsData(path=str(tmp_path)))
    assert mosaics[0]["pixel_values"].shape == (3, CANVAS, CANVAS)


def test_inverted_images_become_light_on_dark(tmp_path: Path) -> None:
    for digit in range(10):
        (tmp_path / str(digit)).mkdir()
        for number in range(5):
            Image.new("L", (8, 8), 205 + 5 * digit + number).save(tmp_path / str(digit) / f"{number}.png")
    assert digits_by_class(source_splits(str(tmp_path), invert=True)["train"])[0].max() < 0.25


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("absent", "is not a folder"),
        ("class missing", "no sub-folder for the classes 7"),
        ("too few", "class 0 has 3 different images; at least 5"),
        ("unreadable", r"x\.png: the image is not one of"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, damage: str, reason: str) -> None:
    root = tmp_path / "digits"
    if damage != "absent":
        write_folder(root, 3 if damage == "too few" else 5)
    if damage == "class missing":
        (root / "7").rename(root / "seven")
    if damage == "unreadable":
        (root / "3" / "x.png").write_text("no image")
    with pytest.raises(ValueError, match=reason):
        source_splits(str(root))
