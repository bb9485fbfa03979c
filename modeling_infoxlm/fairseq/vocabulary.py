"""The order of a fairseq vocabulary, held against a tokenizer and a table of embeddings."""

from itertools import zip_longest
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from modeling_infoxlm.runs.errors import UsageError

# fairseq's first ids, the same as XLM-R's; dict.txt begins behind them.
_FIRST_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"
# fairseq and users pad tables to a multiple of 8 to 128 rows; more rows belong to another vocabulary.
_MOST_PADDING = 127


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


def check_vocabulary(
    num_rows: int, dictionary: str | None, tokenizer: PreTrainedTokenizerBase | None
) -> list[str]:
    """Hold the table of embeddings, and the order of ids, against whatever tells the vocabulary.

    Args:
        num_rows: Rows of the table. Those beyond the vocabulary fill it up to a round size.
        dictionary: fairseq's `dict.txt`.
        tokenizer: The one that is stored with the model.

    Returns:
        Notes on rows that no token uses, and on what was not checked.

    Raises:
        UsageError: If an id has no row, there are more rows than padding explains, or an id means another
            piece in the dictionary than in the tokenizer.
    """
    symbols = None if dictionary is None else read_dictionary(Path(dictionary))
    sizes = {} if tokenizer is None else {f"tokenizer {tokenizer.name_or_path}": len(tokenizer)}
    sizes |= {} if symbols is None else {str(dictionary): len(symbols)}
    for origin, size in sizes.items():
        if not 0 <= num_rows - size <= _MOST_PADDING:
            raise UsageError(
                f"the table of embeddings has {num_rows:,} rows, {origin} {size:,} ids with <mask>; expected "
                f"as many, or up to {_MOST_PADDING} rows of padding more. Give those of the checkpoint."
            )
    spare = num_rows - max(sizes.values(), default=num_rows)
    notes = [f"{spare} rows of the embeddings are padding: no token uses them."] if spare else []
    if symbols is None or tokenizer is None:
        return [*notes, "the order of ids was not checked: that needs --dict and --tokenizer_name."]
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for number, (symbol, piece) in enumerate(zip_longest(symbols, pieces, fillvalue="")):
        if symbol != piece:
            raise UsageError(
                f"id {number:,} is {symbol!r} in the dictionary ({len(symbols):,} symbols) but "
                f"{piece!r} in tokenizer {tokenizer.name_or_path} ({len(pieces):,} tokens); give the "
                "dictionary and the tokenizer that the checkpoint was trained with."
            )
    return notes
