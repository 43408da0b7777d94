"""The terminal: texts are printed literally, control characters are escaped, every encoding works."""

import io
import sys

import pytest
from rich.console import Console

from trainer.runtime import console

ODD = "\x1b]0;title\x07 \x1b[2J red [red]no[/red] [/x] :smile: caf\xe9 \u65e5\u672c a\u202eb \x9b31m \ud800 \x00"
SHOWN = (
    r"\x1b]0;title\x07 \x1b[2J red [red]no[/red] [/x] :smile: caf"
    + "\xe9 \u65e5\u672c "
    + r"a\u202eb \x9b31m \ud800 \x00"
)


def show_everything(text):
    console.stage("mine", text)
    console.warn("mine", text)
    console.error(text)
    console.card(text, {"query": text})
    console.table(text, ["key", text], [[text, text]])


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setattr(console.console, "width", 2000)


@pytest.fixture
def terminal(monkeypatch):
    """Standard output and error over one buffer of an encoding, as a terminal or not."""

    def terminal(encoding, isatty=False):
        buffer = io.BytesIO()
        for name in ("stdout", "stderr"):
            stream = io.TextIOWrapper(buffer, encoding=encoding, write_through=True)
            monkeypatch.setattr(stream, "isatty", lambda: isatty, raising=False)
            monkeypatch.setattr(sys, name, stream)
        return buffer

    return terminal


def test_markup_and_control_characters_in_texts_are_escaped(wide, capsys):
    show_everything(ODD)
    out, err = capsys.readouterr()
    assert err == f"{SHOWN}\n"
    assert out.count(SHOWN) == 8  # two lines, a card's title and text, a table's title, column and two cells
    for forbidden in "\x1b\x07\x9b\u202e\x00":
        assert forbidden not in out + err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "shift_jis", "utf-8"])
def test_every_encoding_can_show_every_text(encoding, terminal, wide):
    buffer = terminal(encoding)
    show_everything(ODD)
    shown = buffer.getvalue().decode(encoding)
    assert r"\x1b]0;title" in shown
    assert ("\u65e5" in shown) == (encoding in ("shift_jis", "utf-8"))
    assert (r"\u65e5" in shown) == (encoding not in ("shift_jis", "utf-8"))
    assert ("\u2503" in shown) == (encoding == "utf-8")  # borders


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_without_colours_gets_none(variable, terminal, monkeypatch):
    buffer = terminal("utf-8", isatty=True)
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(console, "console", console._console("stdout"))
    console.stage("mine", "100 negatives", style="green", note="(up to date)")
    shown = buffer.getvalue().decode()
    assert "mine      100 negatives  (up to date)" in shown.replace("\x1b[1m", "").replace("\x1b[0m", "").replace(
        "\x1b[2m", ""
    )
    assert "\x1b[32m" not in shown


def test_a_note_is_dim_and_the_rest_has_its_style(monkeypatch):
    record = Console(file=io.StringIO(), force_terminal=True, color_system="standard", soft_wrap=True, highlight=False)
    monkeypatch.setattr(console, "console", record)
    console.stage("mine", "in /data/[team]", note="(up to date)")
    console.stage("check", "can run", style="green")
    assert record.file.getvalue() == (
        "\x1b[1;36mmine     \x1b[0m in /data/[team]\x1b[2m  (up to date)\x1b[0m\n"
        "\x1b[1;36mcheck    \x1b[0m\x1b[32m can run\x1b[0m\n"
    )


def test_without_any_output_stream_nothing_is_shown_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    show_everything(ODD)


def test_a_progress_bar_of_zero_steps_is_not_drawn(terminal, monkeypatch):
    buffer = terminal("utf-8", isatty=True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "console", console._console("stdout"))
    with console.progress("score", total=0) as advance:
        advance(1)
    assert buffer.getvalue() == b""


def test_progress_on_a_terminal_leaves_other_lines_whole(terminal, monkeypatch):
    buffer = terminal("utf-8", isatty=True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "console", console._console("stdout"))
    with console.progress("train", total=2) as advance:
        advance(1, "loss [/x] 0.1")
        sys.stdout.write("a line of somebody else's\n")
        console.stage("train", "step 1")
    shown = buffer.getvalue().decode()
    assert "a line of somebody else's" in shown
    assert "step 1" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", r"a \| b"),
        ("`code` *bold* _x_ ~~no~~ #1", r"\`code\` \*bold\* \_x\_ \~\~no\~\~ \#1"),
        ("<script>alert(1)</script> &amp;", r"\<script\>alert(1)\</script\> \&amp;"),
        ("![i](http://a/b.png) [l](javascript:x)", r"\!\[i\](http://a/b.png) \[l\](javascript:x)"),
        ("one\n# two\r\n\tthree\u2028four", r"one \# two three four"),
        ("a\u202eb\x1b[31m\x00", r"a\u202eb\x1b\[31m\x00".replace("\\u", "\\\\u").replace("\\x", "\\\\x")),
        ("back\\slash", r"back\\slash"),
        ("\u05e9\u05dc\u05d5\u05dd \u200fRLM \u200d", "\u05e9\u05dc\u05d5\u05dd \u200fRLM \u200d"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text, shown):
    assert console.markdown(text) == shown


# Progress without a terminal


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def advanced(capsys, steps, total=100, completed=0):
    """Return the lines of a progress in which each step is (seconds, count, note)."""
    clock = Clock()
    with console.progress("teacher", total, completed, clock=clock) as advance:
        for seconds, count, note in steps:
            clock.now += seconds
            advance(count, note)
    return capsys.readouterr().out.splitlines()


def test_long_work_prints_a_line_every_half_minute_with_rate_and_time_left(capsys):
    lines = advanced(capsys, [(10, 5, "")] * 10)
    assert lines == [
        "teacher   15 of 100 (15%), 0.5 per second, 3 min left",
        "teacher   30 of 100 (30%), 0.5 per second, 2 min left",
        "teacher   45 of 100 (45%), 0.5 per second, 2 min left",
    ]


def test_short_work_prints_nothing(capsys):
    assert advanced(capsys, [(2.9, 10, "")] * 10) == []


def test_finished_work_prints_no_line_of_its_own(capsys):
    assert advanced(capsys, [(100, 100, "")]) == []


def test_the_rate_of_a_resumed_run_counts_only_what_this_process_did(capsys):
    (line,) = advanced(capsys, [(40, 10, "loss 0.5")], total=100, completed=50)
    assert line == "teacher   60 of 100 (60%), 0.25 per second, 3 min left; loss 0.5"


def test_work_that_has_not_advanced_has_no_estimate(capsys):
    (line,) = advanced(capsys, [(31, 0, "")])
    assert line == "teacher   0 of 100 (0%), 0 per second, unknown left"


def test_a_note_cannot_control_the_terminal(capsys):
    (line,) = advanced(capsys, [(31, 1, "\x1b[2J")])
    assert line.endswith(r"; \x1b[2J")


def test_quiet_and_empty_work_print_nothing(capsys):
    assert advanced(capsys, [(31, 1, "")], total=0) == []
    console.quiet()
    assert advanced(capsys, [(31, 1, "")]) == []


def test_a_terminal_shows_a_bar_and_no_lines(terminal, monkeypatch):
    buffer = terminal("utf-8", isatty=True)
    monkeypatch.setattr(console, "console", console._console("stdout"))
    clock = Clock()
    with console.progress("train", 10, clock=clock) as advance:
        clock.now += 31
        advance(1, "loss 0.5")
    shown = buffer.getvalue().decode()
    assert "per second" not in shown
    assert "10" in shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (1e5, "27.8 h")],
)
def test_durations_are_rounded(seconds, words):
    assert console.duration(seconds) == words
