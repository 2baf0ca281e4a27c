from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.records import Prompt, UserError
from costmodel.tokens import MAGNITUDES, SPECIALS, TextTokenizer

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
