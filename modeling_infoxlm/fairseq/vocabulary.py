"""The order of a fairseq vocabulary, held against a tokenizer and a table of embeddings."""

from itertools import zip_longest
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.training.arguments import ModelArguments
from modeling_infoxlm.training.model_setup import load_tokenizer

# fairseq's first ids, the same as XLM-R's; dict.txt begins behind them.
_FIRST_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"
# fairseq and users pad tables to a multiple of 8 to 128 rows; more rows belong to another vocabulary.
_MOST_PADDING = 127


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by folder or Hub name.

    Raises:
        UsageError: If there is none, or it is not a fast one with the special tokens of XLM-R.
    """
    try:
        return load_tokenizer(ModelArguments(tokenizer_name=name))
    except (OSError, ValueError) as error:
        raise UsageError(f"tokenizer {name} cannot be used: {error}") from error


def read_dictionary(path: Path) -> list[str]:
    """All symbols of a fairseq dictionary by id: its four first ones, the lines of `dict.txt`, and `<mask>`.

    Args:
        path: Lines `PIECE COUNT`. fairseq appends `<mask>` when it makes the task, unless the file has it.

    Raises:
        UsageError: If the file cannot be read, a line has another form, or a symbol comes twice.
    """
    symbols = dict.fromkeys(_FIRST_SYMBOLS)
    try:
        # Only "\n" ends a line: pieces may hold any other sign that Unicode takes for an end.
        with open(path, encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                piece, _, count = line.removesuffix("\n").removesuffix("\r").rpartition(" ")
                if not piece or not count.isdecimal():
                    raise UsageError(f"{path}, line {number}: expected PIECE COUNT, found {line[:60]!r}.")
                if piece in symbols:
                    raise UsageError(f"{path}, line {number}: {piece!r} comes twice; each piece has one id.")
                symbols[piece] = None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not valid UTF-8 at byte {error.start:,}.") from error
    return list(symbols) if _MASK in symbols else [*symbols, _MASK]


def check_order(symbols: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose ids mean other pieces than the dictionary's.

    Raises:
        UsageError: With the first id that differs.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for number, (symbol, piece) in enumerate(zip_longest(symbols, pieces)):
        if symbol != piece:
            raise UsageError(
                f"id {number:,} is {_quoted(symbol)} in the dictionary ({len(symbols):,} symbols) but "
                f"{_quoted(piece)} in tokenizer {tokenizer.name_or_path} ({len(pieces):,} tokens); give the "
                "dictionary and the tokenizer that the checkpoint was trained with."
            )


def check_table(num_rows: int, vocabulary_size: int, origin: str) -> int:
    """Hold the rows of the table of embeddings against a vocabulary.

    Args:
        num_rows: Rows of the table.
        vocabulary_size: Number of ids, `<mask>` included.
        origin: What has that vocabulary, for messages.

    Returns:
        Rows beyond the vocabulary, which fill the table up to a round size and that no token uses.

    Raises:
        UsageError: If an id has no row, or there are more rows than padding explains.
    """
    spare = num_rows - vocabulary_size
    if not 0 <= spare <= _MOST_PADDING:
        raise UsageError(
            f"the table of embeddings has {num_rows:,} rows, {origin} {vocabulary_size:,} ids with <mask>; "
            f"expected as many, or up to {_MOST_PADDING} rows of padding more. Give those of the checkpoint."
        )
    return spare


def _quoted(symbol: str | None) -> str:
    return "nothing" if symbol is None else repr(symbol)
