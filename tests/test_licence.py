"""The licence of a base, read from its card."""

import pytest

from trainer.model_files.licence import Licence

OTHER = "---\nlicense: other\nlicense_name: gemma\nlicense_link: https://example.org/terms\n---\n# Gemma\n"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", Licence("apache-2.0")),
        ("---\ntags:\n- a\nlicense:\n- mit\n- apache-2.0\n---\n", Licence("mit")),
        ("\n---\nlicense: mit\n---", Licence("mit")),
        (OTHER, Licence("other", "gemma", "https://example.org/terms")),
        ("# A model\n\n---\nlicense: mit\n---\n", Licence()),  # not at the top
        ("---\nlicense: [\n---\n", Licence()),
        ("---\nlicense: 3\n---\n", Licence()),
        ("---\n- license\n---\n", Licence()),
        ("---\nlicense_name: gemma\n---\n", Licence()),
        ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", Licence()),
        ("", Licence()),
        (None, Licence()),
    ],
)
def test_the_licence_is_what_the_front_matter_states(tmp_path, card, expected):
    if card is not None:
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert Licence.of(tmp_path) == expected


def test_a_card_that_is_no_text_states_nothing(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n\xff\xfe---\n")
    assert Licence.of(tmp_path) == Licence()


def test_the_sentence_names_the_licence_or_that_there_is_none():
    assert (
        "is other (gemma, https://example.org/terms);"
        in Licence("other", "gemma", "https://example.org/terms").sentence
    )
    assert "is mit; it holds" in Licence("mit").sentence
    assert "states no licence" in Licence().sentence
