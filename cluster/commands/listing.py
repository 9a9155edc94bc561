"""`tandem --help`: all commands, a line each, in the order in which one comes to need them."""

from collections.abc import Mapping

from trainer.base.screen import say

GROUPS = {
    "to begin": ("demo", "doctor"),
    "data": ("prepare", "synth"),
    "training": ("train", "resume", "tune", "compare", "join", "mine", "plan"),
    "how good it is": ("evaluate", "recommend", "similar", "report"),
    "while it trains": ("dashboard", "status"),
    "serving": ("export", "serve"),
    "jobs of a cluster": ("submit", "logs", "stop"),
    "speed": ("bench",),
}


def print_help(summaries: Mapping[str, str]) -> None:
    """Usage, the commands with what they are for, and what to begin with."""
    say("tandem: two-tower retrieval training")
    say()
    say("usage: tandem COMMAND ... [--verbose]")
    say("       tandem --version | --install-completion [bash|zsh|fish]")
    for group, names in GROUPS.items():
        say()
        say(f"{group}:")
        for name in names:
            say(f"  {name:12}{summaries[name]}")
    say()
    say("with a file of your own: tandem prepare FILE --look   says how it would be read")
    say("`tandem COMMAND --help` lists a command's flags.")
