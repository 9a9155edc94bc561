"""Words, numbers and paths that nobody expects."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = st.sampled_from(
    [
        "",
        " ",
        "[red]x[/red]",
        "[/x]",
        ":heart:",
        "a'b",
        'a"b',
        "'; DROP TABLE raw; --",
        "a\nb",
        "a\rb",
        "a\tb",
        "\x1b[2J",
        "\u202egpj",
        "💥",
        "ü",
        "名前",
        "a" * 300,
        "-x",
        "--",
        "%s%n",
        "{0}",
        "${HOME}",
        "~",
        "..",
        "None",
        "nan",
        "NULL",
        "true",
        "\udcff",
        "a,b",
        "a;b",
        "a=b",
        "*",
        "?",
        "a[1]",
        "C:\\x",
        "\ufeffa",
    ]
) | st.text(min_size=1, max_size=8)
"""Any text, without NUL, which no command line can carry."""
WORDS = WORDS.filter(lambda word: "\x00" not in word and word not in ("-h", "--help"))

NUMBERS = (
    st.sampled_from(
        [
            *("nan", "inf", "-inf", "-1", "0", "-0", "0.0", "1e400", "-1e400", "1e-400", "1e30"),
            *(
                str(2**31 - 1),
                str(2**31),
                str(2**63 - 1),
                str(2**63),
                str(-(2**63) - 1),
                str(10**30),
            ),
            *(
                "1_0",
                " 1",
                "1 ",
                "+1",
                "٣",
                "1e3",
                "0x10",
                "1.5",
                "4GB",
                "10%",
                "1,000",
                "",
                "null",
            ),
            *("true", "True", "one", "1" * 5000, "--", "-", "1..2", "2..1", "0.5", "1e-9", "-5"),
        ]
    )
    | st.integers().map(str)
    | st.floats().map(str)
)

PLACES = st.sampled_from(
    [
        "plain",
        "data[1]",
        "da?ta",
        "st*r",
        "with blank",
        "line\nend",
        "a=b",
        "user=7/x",
        "c:/d",
        "-dash",
        "--out",
        "'quote",
        '"quote',
        "ü💥",
        "[bold]x[/bold]",
        "{a,b}",
        "~x",
        "a::b",
        "tab\there",
        "esc\x1b[31m",
        "back\\slash",
        "x.json",
        "x.parquet",
        ".hidden",
        "deep/er/est",
        "trailing ",
        "%41",
        "#x",
        "$x",
        "x;y",
        "\udc80raw",
        "n" * 200,
    ]
)
"""Names that a file or folder can have."""

NO_PLACES = st.sampled_from(
    [
        "",
        "nowhere",
        "nowhere/x",
        "notes.txt",
        "notes.txt/x",
        "loop",
        "dangling",
        "pipe",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "/proc/x/y",
        "/sys/x",
        ".",
        "..",
        "out.old",
        "empty",
        "n" * 300,
        "x/" * 600,
        "http://127.0.0.1:9/x",
        "https://127.0.0.1:9/x",
        "nope://x",
        "://",
        "s3://",
        "file://",
        "file:///proc/nowhere",
        "memory://x",
        "github://a:b@c/d",
        "zip://x::notes.txt",
        "ftp://127.0.0.1:9/x",
        "s3:/x",
        "*",
        "[",
        "\udc80",
        "~nobody/x",
    ]
)
"""What is there and is of the wrong kind, what is not there, what is no place of ours."""


def mostly(usual: st.SearchStrategy[str], other: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Six of seven draws are usual."""
    return st.one_of(*[usual] * 6, other)
