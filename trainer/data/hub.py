"""Data sets that the `datasets` library loads: from the Hugging Face Hub, or from a folder with the same layout.

Two layouts are supported: BEIR's (configurations corpus and queries; the judgements in the configuration default or
qrels, or in another data set NAME-qrels) and pairs or triplets of texts. Python code in a data set is never run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from trainer.data.faults import Faults
from trainer.data.tables import ROWS_AT_ONCE, Choose, Rows, Table
from trainer.errors import DataError, one_line

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

PARTS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
Tables = list[Table]


class SetTable(NamedTuple):
    """One split of a loaded data set."""

    name: str
    dataset: Dataset

    def location(self, number: int) -> str:
        """Return the data set and row number, for messages."""
        return f"{self.name}: row {number}"

    def rows(self, choose: Choose, faults: Faults) -> Rows:
        """Yield numbered rows of the chosen columns."""
        del faults  # the library has read the files already
        names = self.dataset.column_names
        wanted = choose(names)
        if wanted is None:
            return
        number = 0
        chosen = self.dataset.select_columns([name for name in names if name in wanted])
        for batch in _batches(chosen):
            for row in batch.to_pylist():
                number += 1
                yield number, row

    def sha256(self) -> str:
        """Return the sha256 of the Arrow content."""
        digest = hashlib.sha256(" ".join(self.dataset.column_names).encode())
        for batch in _batches(self.dataset):
            digest.update(batch.serialize())
        return digest.hexdigest()


def _batches(dataset: Dataset) -> Iterator[pyarrow.RecordBatch]:
    for table in dataset.with_format("arrow").iter(ROWS_AT_ONCE):
        yield from cast("pyarrow.Table", table).combine_chunks().to_batches()


def find_set(reference: str, needs_train: bool = True) -> tuple[Tables, Tables, dict[str, Tables], dict[str, Tables]]:
    """Return corpus, queries, qrels by split, and pairs by split; either the first three are empty or the pairs.

    Raises DataError if the data set cannot be loaded or has another layout.
    """
    name, _, configuration = reference.partition(":")
    configurations = _configurations(name)
    if configuration and configuration not in configurations:
        raise DataError(f"hub:{name}: no configuration {configuration!r}; it has {', '.join(configurations)}")
    if not configuration and {"corpus", "queries"} <= set(configurations):
        qrels = _judgements(name, configurations, needs_train)
        return _all(name, "corpus"), _all(name, "queries"), qrels, {}
    if not configuration and len(configurations) > 1:
        raise DataError(
            f"hub:{name}: has the configurations {', '.join(configurations)}; corpus and queries (and default or "
            f"qrels) are needed, or one with pairs: name it, e.g. path: hub:{name}:{configurations[0]}"
        )
    return [], [], {}, _by_split(name, configuration or configurations[0], needs_train)


def _judgements(name: str, configurations: list[str], needs_train: bool) -> dict[str, Tables]:
    for configuration in ("qrels", "default"):
        if configuration in configurations:
            return _by_split(name, configuration, needs_train)
    qrels_set = f"{name}-qrels"
    return _by_split(qrels_set, _configurations(qrels_set)[0], needs_train)


def _all(name: str, configuration: str) -> Tables:
    """Return all splits of a configuration, since data sets name the only split of their corpus differently."""
    loaded = _load(name, configuration)
    return [SetTable(f"hub:{name}/{configuration}/{split}", dataset) for split, dataset in loaded.items()]


def _by_split(name: str, configuration: str, needs_train: bool) -> dict[str, Tables]:
    loaded = _load(name, configuration)
    parts: dict[str, Tables] = {}
    for split, dataset in loaded.items():
        if split not in PARTS:
            raise DataError(
                f"hub:{name}/{configuration}: split {split!r} is not one of {', '.join(PARTS)}; rename it, or download "
                "the files and name them one by one (data.qrels or data.pairs, data.dev, data.test)"
            )
        parts.setdefault(PARTS[split], []).append(SetTable(f"hub:{name}/{configuration}/{split}", dataset))
    if needs_train and "train" not in parts:
        raise DataError(f"hub:{name}/{configuration}: has no split train, only {', '.join(loaded)}")
    return {part: parts[part] for part in ("train", "dev", "test") if part in parts}


def _configurations(name: str) -> list[str]:
    from datasets import get_dataset_config_names

    return list(_call(name, get_dataset_config_names, _path_or_name(name)))


def _load(name: str, configuration: str) -> Mapping[str, Dataset]:
    from datasets import load_dataset

    return _call(name, load_dataset, _path_or_name(name), configuration)


def _path_or_name(name: str) -> str:
    """Return the expanded path of a folder, or the unchanged name of a data set on the Hub."""
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def _call(name: str, function: Any, *arguments: str) -> Any:
    """Call a function of the library, and raise its various errors as one DataError."""
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] httpx's or httpx2's

    datasets.disable_progress_bars()
    try:
        return function(*arguments)
    except (DatasetsError, HTTPError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = one_line(error.__cause__ or error)[:200]
        raise DataError(
            f"hub:{name}: cannot be loaded ({reason}); check the name and the network, run `hf auth login` if it is "
            "private or gated, or download its files and name them one by one"
        ) from None
