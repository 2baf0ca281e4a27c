import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.records import Prompt, UserError
from costmodel.tokens import MAGNITUDES, P10, SPECIALS, LogGrid, NumberCodec, TextTokenizer

SOURCE = "for(long i=0;i<n;++i){\nsum+=left[i]*right[i];\n}\n" * 8
PROMPTS = [
    Prompt(SOURCE, "device cpu units 2", "problem dot N=4096", (str(tile), mode, "0.5"))
    for tile in (8, 16, 128)
    for mode in ("row", "two words")
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(PROMPTS, vocab_size=400)


# ---- text ----


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_a_lone_surrogate_tokenizes(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


@settings(max_examples=100, deadline=None)
@given(number=st.integers(0, 10**18))
def test_digits_are_split(tokenizer: TextTokenizer, number: int) -> None:
    """However the training text favoured a number: 4096 stands in every prompt."""
    for text in (str(number), f"N={number}", f" {number}.5"):
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
        assert all(sum(map(str.isdigit, piece)) <= 1 for piece in pieces)


def test_merges_make_the_training_text_short(tokenizer: TextTokenizer) -> None:
    assert len(tokenizer.encode(SOURCE)) < len(SOURCE) / 2


@pytest.mark.parametrize("trap", [*SPECIALS, MAGNITUDES[30], "<v:128>", "x <eot> <v:8>"])
def test_text_cannot_write_special_tokens(tokenizer: TextTokenizer, trap: str) -> None:
    special = {tokenizer.pad_id, tokenizer.eot_id, tokenizer.sep_id, *tokenizer._magnitudes}
    assert not special & set(tokenizer.encode(trap))
    assert tokenizer.decode(tokenizer.encode(trap)) == trap
    assert len(tokenizer.encode(trap)) > 1


def test_known_values_are_one_token_and_others_are_closed_digits(tokenizer: TextTokenizer) -> None:
    assert set(tokenizer.known_values) == {"8", "16", "128", "row", "two words", "0.5"}
    *known, end = tokenizer.encode_suffix(PROMPTS[-1])
    assert tokenizer.decode(known) == "<v:128><v:two words><v:0.5>"
    assert end == tokenizer.eot_id
    unknown = tokenizer.encode_suffix(Prompt("", "", "", ("48", "16")))
    assert [tokenizer.decode([i]) for i in unknown] == ["4", "8", "<m:5.5>", "<sep>", "<v:16>", "<eot>"]


configs = st.lists(st.sampled_from(["8", "16", "row", "1", "12", "2", "", "<sep>", "a b"]) | st.text(max_size=4)).map(
    tuple
)


@settings(max_examples=200, deadline=None)
@given(one=configs, two=configs)
def test_different_configs_have_different_suffixes(
    tokenizer: TextTokenizer, one: tuple[str, ...], two: tuple[str, ...]
) -> None:
    same = tokenizer.encode_suffix(Prompt("", "", "", one)) == tokenizer.encode_suffix(Prompt("", "", "", two))
    assert same == (one == two)


def test_prefix_parts_are_encoded_apart(tokenizer: TextTokenizer) -> None:
    prompt = PROMPTS[0]
    whole = tokenizer.encode_prefix(prompt)
    magnitudes = set(tokenizer._magnitudes)
    parts = [tokenizer.encode(text) for text in (prompt.source, prompt.device, prompt.problem)]
    plain = [i for i in whole.ids if i not in magnitudes]
    assert whole.source == parts[0]
    assert tokenizer.decode(plain) == tokenizer.decode([i for part in parts for i in (*part, tokenizer.sep_id)])
    assert whole.truncated == 0


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("M=512", "M=512<m:9>"),
        ("clock 2300 l2 0.5", "clock 2300<m:11> l2 0.5<m:-1>"),
        ("flops 2^25.2 bytes ?", "flops 2^25.2<m:25> bytes ?"),
        ("f32[3,1024] size_0=7", "f32[3<m:1.5>,1024<m:10>] size_0=7<m:3>"),  # not those inside a name
        ("0 1e30", "0<m:-10> 1e30<m:40>"),  # the ends take what is beyond
    ],
)
def test_numbers_of_the_context_are_followed_by_their_magnitude(tokenizer: TextTokenizer, text: str, read: str) -> None:
    assert tokenizer.decode(tokenizer.encode_context(text, "")) == f"<sep>{read}<sep><sep>"


def test_a_budget_cuts_the_source_at_its_end_and_counts(tokenizer: TextTokenizer) -> None:
    prompt = PROMPTS[0]
    whole = tokenizer.encode_prefix(prompt).ids
    rest = len(whole) - len(tokenizer.encode(prompt.source))
    for budget in (rest, rest + 7, len(whole) - 1, len(whole), len(whole) + 5):
        cut = tokenizer.encode_prefix(prompt, budget)
        assert len(cut.ids) == min(budget, len(whole))
        assert cut.truncated == len(whole) - len(cut.ids)
        assert cut.ids == whole[: len(cut.ids) - rest] + whole[-rest:]
    with pytest.raises(UserError, match=f"expected at least {rest}"):
        tokenizer.encode_prefix(prompt, rest - 1)


def test_saved_tokenizer_is_the_same_everywhere(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    text = SOURCE + " 128 <eot> ü"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.encode_suffix(PROMPTS[-1]) == tokenizer.encode_suffix(PROMPTS[-1])
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tuple(plain.encode(SOURCE).ids) == tokenizer.encode(SOURCE)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert tuple(fast(SOURCE)["input_ids"]) == tokenizer.encode(SOURCE)
    assert fast.convert_tokens_to_ids("<eot>") == tokenizer.eot_id


def test_training_is_repeatable(tokenizer: TextTokenizer) -> None:
    assert TextTokenizer.train(reversed(PROMPTS), vocab_size=400).encode(SOURCE) == tokenizer.encode(SOURCE)


def test_values_take_at_most_a_quarter_of_the_vocabulary() -> None:
    prompts = [Prompt("a", "", "", (str(i % 200), "7")) for i in range(1000)]
    trained = TextTokenizer.train(prompts, vocab_size=480)
    assert len(trained.known_values) == 120
    assert "7" in trained.known_values


def test_mistakes_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocab_size=100, expected at least"):
        TextTokenizer.train(["a"], vocab_size=100)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected a tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="without <pad>, <eot>, <sep>"):
        TextTokenizer.load(tmp_path)


# ---- numbers ----


def words(codec: NumberCodec, value: float) -> str:
    return " ".join(codec.vocabulary[i] for i in codec.encode(value))


@pytest.mark.parametrize(
    ("value", "tokens", "back"),
    [
        (0.0, "+ 0 0 0 0 E0", 0.0),
        (1.0, "+ 1 0 0 0 E-3", 1.0),
        (-1.9999, "- 2 0 0 0 E-3", -2.0),  # rounds up through the carry, where truncation would give 1.999
        (1.9994, "+ 1 9 9 9 E-3", 1.999),
        (1234.5, "+ 1 2 3 4 E0", 1234.0),  # an exact tie goes to the even digit
        (1235.5, "+ 1 2 3 6 E0", 1236.0),
        (999.95, "+ 1 0 0 0 E0", 1000.0),  # the double is a little above the tie
        (1e-7, "+ 1 0 0 0 E-10", 1e-7),
        (9.9994e-8, "+ 0 0 0 0 E0", 0.0),  # below the smallest: 0
        (9.9996e-8, "+ 1 0 0 0 E-10", 1e-7),  # rounds into the range
        (-1e-30, "+ 0 0 0 0 E0", 0.0),
        (5e-324, "+ 0 0 0 0 E0", 0.0),
        (9.999e13, "+ 9 9 9 9 E10", 9.999e13),
        (9.9996e13, "+ 9 9 9 9 E10", 9.999e13),  # above the largest: the largest
        (-1.7e308, "- 9 9 9 9 E10", -9.999e13),
    ],
)
def test_p10_table(value: float, tokens: str, back: float) -> None:
    codec = P10()
    assert words(codec, value) == tokens
    assert codec.decode(codec.encode(value)) == back
    assert math.copysign(1, codec.decode(codec.encode(value))) == math.copysign(1, back)


@pytest.mark.parametrize(
    ("value", "bin_", "back"),
    [
        (-6.0, 0, -6.0 + 10 / 256),
        (0.0, 76, -6.0 + 76.5 * 20 / 256),
        (13.9999, 255, 14.0 - 10 / 256),
        (14.0, 255, 14.0 - 10 / 256),
        (-60.0, 0, -6.0 + 10 / 256),
        (60.0, 255, 14.0 - 10 / 256),
    ],
)
def test_log_grid_table(value: float, bin_: int, back: float) -> None:
    grid = LogGrid()
    assert grid.encode(value) == [bin_]
    assert grid.decode([bin_]) == pytest.approx(back, abs=1e-12)
    assert grid.clips(value) == (abs(value) == 60.0)


@given(st.floats(-6.0, 14.0))
def test_log_grid_is_within_half_a_bin(value: float) -> None:
    grid = LogGrid()
    (token,) = grid.encode(value)
    assert abs(grid.decode([token]) - value) <= grid.width / 2 * (1 + 1e-9)
    assert grid.edges[token] - 1e-9 <= value <= grid.edges[token + 1] + 1e-9


@given(st.floats(1e-7, 9.999e13), st.booleans(), st.integers(1, 7))
def test_p10_is_within_half_a_unit_of_the_last_digit(magnitude: float, negative: bool, digits: int) -> None:
    codec = P10(mantissa_digits=digits, min_exponent=-20)
    value = -magnitude if negative else magnitude
    largest = (10**digits - 1) * 1e10
    if magnitude > largest:
        assert codec.decode(codec.encode(value)) == math.copysign(largest, value)
        return
    unit = 10.0 ** (math.floor(math.log10(magnitude)) - digits + 1)
    assert abs(codec.decode(codec.encode(value)) - value) <= unit / 2 * (1 + 1e-9)


def strings(codec: NumberCodec) -> dict[tuple[int, ...], float]:
    """Every string the grammar allows, with its probability if each step chooses evenly among the allowed tokens."""
    partial = {(): 1.0}
    for _ in range(codec.num_tokens):
        partial = {
            (*prefix, token): weight / len(allowed)
            for prefix, weight in partial.items()
            for allowed in [codec.allowed_next(prefix)]
            for token in allowed
        }
    return partial


SMALL = [P10(mantissa_digits=2, min_exponent=-1, max_exponent=2), P10(mantissa_digits=1), LogGrid(bins=7)]


@pytest.mark.parametrize("codec", SMALL)
def test_probabilities_sum_to_one_and_each_string_is_the_only_one_of_its_value(codec: NumberCodec) -> None:
    table = strings(codec)
    assert sum(table.values()) == pytest.approx(1.0, abs=1e-12)
    failures = [ids for ids in table if math.isnan(codec.decode(ids))]
    assert failures == [(codec.failed,) * codec.num_tokens]
    for ids in table:
        assert codec.allowed_next(ids) == ()
        if ids not in failures:
            assert tuple(codec.encode(codec.decode(ids))) == ids


@pytest.mark.parametrize("codec", SMALL)
def test_no_other_string_decodes(codec: NumberCodec) -> None:
    legal = strings(codec)
    vocabulary = range(len(codec.vocabulary))
    for ids in itertools.islice(itertools.product(vocabulary, repeat=codec.num_tokens), 20000):
        if ids not in legal:
            with pytest.raises(ValueError, match="does not allow"):
                codec.decode(ids)
    for short in ([], list(next(iter(legal)))[:-1], [-1], [len(codec.vocabulary)]):
        with pytest.raises(ValueError, match=r"expected|does not allow"):
            codec.decode(short)


@pytest.mark.parametrize("codec", [P10(), LogGrid(), *SMALL])
def test_the_mask_is_a_table_by_state(codec: NumberCodec) -> None:
    assert codec.mask.dtype == np.bool_
    assert codec.mask.shape == codec.next_state.shape == (len(codec.mask), len(codec.vocabulary))
    np.testing.assert_array_equal(codec.mask, codec.next_state >= 0)
    assert not codec.mask[-1].any()  # the end
    assert codec.mask[:-1].any(axis=1).all()  # no dead end before it
    assert set(codec.next_state[codec.mask].tolist()) == set(range(1, len(codec.mask)))  # every state is reached
    state, prefix = np.zeros(64, dtype=np.int64), [[] for _ in range(64)]
    chance = np.random.default_rng(0)
    for _ in range(codec.num_tokens):
        scores = np.where(codec.mask[state], chance.random((64, len(codec.vocabulary))), -1)
        token = scores.argmax(axis=1)
        for row, choice in zip(prefix, token, strict=True):
            assert choice in codec.allowed_next(row)
            row.append(int(choice))
        state = codec.next_state[state, token]
    assert (state == len(codec.mask) - 1).all()
    for row in prefix:
        codec.decode(row)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("codec", [P10(), LogGrid()])
def test_what_is_not_a_number_is_refused(codec: NumberCodec, value: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        codec.encode(value)


def test_p10_refuses_negative_zero() -> None:
    with pytest.raises(ValueError, match=r"not -0\.0"):
        P10().encode(-0.0)


@pytest.mark.parametrize("codec", [P10(), LogGrid()])
def test_a_failure_is_one_string(codec: P10 | LogGrid) -> None:
    ids = codec.encode_failed()
    assert len(ids) == codec.num_tokens
    assert math.isnan(codec.decode(ids))
    assert codec.vocabulary[codec.failed] == "<failed>"
    assert LogGrid(bins=256).failed == 256


def test_p10_samples_under_the_mask_all_parse_to_the_nearest_string() -> None:
    """2,000 uniform samples of the default grammar: each is the canonical string of the value it decodes to."""
    codec = P10()
    chance = np.random.default_rng(1)
    for _ in range(2000):
        ids: list[int] = []
        while allowed := codec.allowed_next(ids):
            ids.append(int(chance.choice(allowed)))
        if ids[0] != codec.failed:
            assert codec.encode(codec.decode(ids)) == ids


@pytest.mark.parametrize("fields", [{"mantissa_digits": 0}, {"min_exponent": 1}, {"max_exponent": -1}])
def test_impossible_p10(fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected at least one digit"):
        P10(**fields)
