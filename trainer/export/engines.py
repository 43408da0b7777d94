"""The rules by which search engines read a folder: Elasticsearch through eland, and Vespa."""

from __future__ import annotations

from trainer.export.contents import Contents
from trainer.export.libraries import FILLED
from trainer.export.tei import PROMPT

# The tokenizers that eland 9.2 knows, with the files of their vocabularies: it loads the slow ones of transformers 4.
WORD_PIECE, BYTE_PAIRS = ("vocab.txt",), ("vocab.json", "merges.txt")
TOKENIZERS = {
    **dict.fromkeys(["Bert", "MPNet", "DistilBert", "Electra", "MobileBert", "SqueezeBert"], WORD_PIECE),
    **dict.fromkeys(["Roberta", "Bart"], BYTE_PAIRS),
    "XLMRoberta": ("sentencepiece.bpe.model",),
    "DebertaV2": ("spm.model",),
}


def elasticsearch_faults(contents: Contents) -> list[str]:
    """Return the reasons for which eland would not import a folder as a model of the task `text_similarity`."""
    faults = contents.faults_in_transformers_4 + [PROMPT] * contents.is_prompt
    if contents.brings_code:
        faults.append("it does not run the code in the folder")
    if "SequenceClassification" not in contents.architecture or contents.labels != 1:
        faults.append("it takes a class for sequence classification with one label")
    name = str(contents.tokenizer_config.get("tokenizer_class", ""))
    files = vocabulary_files(name)
    if not files:
        return [*faults, f"it has no tokenizer {name}"]
    return faults + [f"there is no {file}, which its tokenizer needs" for file in files if not _has(contents, file)]


def vocabulary_files(tokenizer: str) -> tuple[str, ...]:
    """Return the names of the files from which eland loads a tokenizer of this class, none if it does not know it."""
    return TOKENIZERS.get(tokenizer.removesuffix("Fast").removesuffix("Tokenizer"), ())


def vespa_faults(contents: Contents) -> list[str]:
    """Return the reasons for which Vespa's functions would not make the inputs of the graph."""
    faults = [PROMPT] * contents.is_prompt + contents.graph_faults(FILLED)
    ids, types = contents.separators
    if len(ids) != 3 or ids[1] != ids[2]:
        faults.append("its functions join a pair as start, query, separator, document, separator")
    elif contents.graph and "token_type_ids" in contents.graph[0] and types != [0, 0, 1]:
        faults.append("its function tokenTypeIds gives the document the type 1")
    return faults


def vespa_note(contents: Contents) -> str:
    """Return the function of a rank profile that makes the token ids."""
    start, separator = (contents.separators[0] + [0, 0])[:2]
    return f"`input_ids` is `customTokenInputIds({start}, {separator}, LENGTH, QUERY, DOCUMENT)`"


def _has(contents: Contents, file: str) -> bool:
    return (contents.folder / file).is_file()
