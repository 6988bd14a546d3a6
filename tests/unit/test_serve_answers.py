"""Answers as text: stop strings over pieces, characters split over tokens, sampling; and what is kept of images."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from tokendial.serve.cache import TensorCache
from tokendial.serve.request import Sampling
from tokendial.serve.sampling import generator_of, next_ids
from tokendial.serve.writing import Writing


def written(ids: Sequence[int], decode, stop: Sequence[str] = ()) -> tuple[list[str], bool]:  # type: ignore[no-untyped-def]
    """The pieces that come out, until a stop string ends them."""
    writing, pieces = Writing(decode, stop), []
    for index in ids:
        pieces.append(writing.push(index))
        if writing.stopped:
            break
    return [*pieces, writing.finish()], writing.stopped


def letters(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def spaced(ids: Sequence[int]) -> str:
    """Words joined by blanks, as a word-level tokenizer does."""
    return " ".join(f"w{index}" for index in ids)


def utf8(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def test_pieces_join_to_the_text_of_all_ids() -> None:
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    assert written(ids, spaced)[0][:3] == ["w3", " w1", " w4"]
    assert "".join(written(ids, spaced)[0]) == spaced(ids)


def test_a_character_of_several_tokens_comes_out_whole() -> None:
    text = "naïve 🙂 日本"
    pieces, _ = written(text.encode(), utf8)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    broken, _ = written("🙂".encode()[:3], utf8)
    assert "".join(broken) == "\ufffd"


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_stop_string_ends_the_answer_wherever_pieces_are_cut(cut: int) -> None:
    text = "one two STOP three"

    def pieces_of(ids: Sequence[int]) -> str:
        return "".join(text[index * cut : (index + 1) * cut] for index in ids)

    pieces, stopped = written(range(len(text)), pieces_of, stop=("nope", "STOP"))
    assert "".join(pieces) == "one two "
    assert stopped


def test_what_only_begins_like_a_stop_string_is_held_back_and_then_told() -> None:
    text = "a ST b STO"
    pieces, stopped = written([ord(letter) for letter in text], letters, stop=("STOP",))
    assert "".join(pieces) == text
    assert not stopped
    assert pieces[2:5] == ["", "", "ST "]


def test_the_earliest_of_several_stop_strings_counts() -> None:
    assert "".join(written([ord(letter) for letter in "abcabc"], letters, stop=("ca", "b"))[0]) == "a"


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    hot = Sampling(4, temperature=100.0, seed=0)
    drawn = generator_of(hot)
    rows = [next_ids(logits, [Sampling(4), hot], [None, drawn]) for _ in range(200)]
    assert {row[0] for row in rows} == {1}
    assert {row[1] for row in rows} == {0, 1, 2}


def test_sampling_follows_temperature_and_nucleus() -> None:
    """3,000 draws; each frequency is within four standard deviations of its probability."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    def shares(sampling: Sampling) -> list[float]:
        generator = generator_of(sampling)
        drawn = Counter(next_ids(logits, [sampling], [generator])[0] for _ in range(3000))
        return [drawn[index] / 3000 for index in range(4)]

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits[0] / temperature).softmax(-1).tolist()
        assert shares(Sampling(1, temperature=temperature, seed=1)) == pytest.approx(expected, abs=0.037)
    first_two = (logits[0, :2]).softmax(-1).tolist()
    assert shares(Sampling(1, temperature=1.0, top_p=0.7, seed=2)) == pytest.approx([*first_two, 0, 0], abs=0.037)
    assert shares(Sampling(1, temperature=1e-9, seed=3)) == [1, 0, 0, 0]


def test_a_banned_token_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0]])
    hot = Sampling(1, temperature=1000.0, seed=0)
    generator = generator_of(hot)
    assert {next_ids(logits, [hot], [generator])[0] for _ in range(100)} == {0, 2}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nothing_is_chosen_from_logits_that_are_no_numbers(bad: float) -> None:
    logits = torch.tensor([[0.0, bad, 1.0], [0.0, 2.0, 1.0], [-torch.inf, -torch.inf, -torch.inf]])
    warm = Sampling(4, temperature=1.0, seed=0)
    assert next_ids(logits, [Sampling(4)] * 3, [None] * 3) == [None, 1, None]
    drawn = next_ids(logits, [warm] * 3, [generator_of(warm) for _ in range(3)])
    assert [index is None for index in drawn] == [True, False, True]


def test_the_cache_forgets_what_was_longest_unused_and_stays_within_its_bytes() -> None:
    cache = TensorCache(max_bytes=3 * 40)
    for name in "abc":
        cache.put(name, torch.zeros(10))
    assert cache.get("a") is not None
    cache.put("d", torch.zeros(10))
    assert [name in cache for name in "abcd"] == [True, False, True, True]
    assert cache.num_bytes == 120
    cache.put("a", torch.zeros(5))
    assert cache.num_bytes == 100
    cache.put("huge", torch.zeros(1000))
    assert "huge" not in cache
    assert (cache.hits, cache.misses) == (1, 0)


def test_the_cache_does_not_keep_a_whole_batch_alive_for_one_row_of_it() -> None:
    cache = TensorCache(max_bytes=10**6)
    batch = torch.randn(8, 100)
    cache.put("row", batch[3])
    kept = cache.get("row")
    assert kept is not None
    assert kept.untyped_storage().nbytes() == 400
    assert torch.equal(kept, batch[3])
