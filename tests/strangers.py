"""Folders that hold modules and packages of our packages' names, which are not ours."""

from pathlib import Path

ANGRY = "raise RuntimeError(f'a stranger was imported: {__file__}')\n"
FILES = ("trainer", "losses", "config", "embeddings")
PACKAGES = ("cluster", "trainer", "embeddings")


def fill_with_strangers(folder: Path, but: str | None = None) -> Path:
    """Files and packages as a user may have them, none called `but`; importing one raises."""
    folder.mkdir()
    for name in FILES:
        if name != but:
            (folder / f"{name}.py").write_text(ANGRY)
    for name in PACKAGES:
        if name != but:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(ANGRY)
    return folder
