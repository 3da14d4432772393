"""What the parser says of a wrong command, in one line that says what to do."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches

RULES: list[tuple[str, Callable[..., str]]] = []
"""What messages of jsonargparse look like, and what is said instead: f(options, commands, *what the pattern caught)."""

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, as [a,b]",
    "tuple": "a list, as [a,b]",
    "dict": 'names and values, as {"a": 1}',
}


def told(message: str, command: str | None, options: list[str], commands: list[str]) -> str:
    """A message of the parser in our words; one of an unknown form in its own, on one line.

    Args:
        message: of jsonargparse.
        command: that was given; None: none of ours.
        options: its names, as "--fit.lr".
        commands: all of them.

    Example:
        >>> told("unrecognized arguments: --fit.epoch 3", "fit", ["--fit.epochs", "--out"], ["fit"])
        'fit: got --fit.epoch, which is no option; did you mean --fit.epochs?'
    """
    text = " ".join(message.split())
    for pattern, say in RULES:
        if found := re.fullmatch(pattern, text):
            said = say(options, commands, *found.groups())
            return f"{command}: {said}" if command else said
    return text


def nearest(name: str, names: Iterable[str], otherwise: str) -> str:
    """A question after the name that is most like this one, else what to do without.

    Example:
        >>> nearest("mnits", ["mnist", "frey"], "see the list"), nearest("x", ["mnist"], "see the list")
        ('did you mean mnist?', 'see the list')
    """
    known = {one.lower(): one for one in names}
    found = get_close_matches(name.lower(), known, 1, 0.6)
    return f"did you mean {known[found[0]]}?" if found else otherwise


def _rule(pattern: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    def keep(say: Callable[..., str]) -> Callable[..., str]:
        RULES.append((pattern, say))
        return say

    return keep


@_rule(r"unrecognized arguments: (\S+).*")
def _unknown(options: list[str], commands: list[str], got: str) -> str:
    if not got.startswith("-"):
        return (
            f"got {got!r} besides its arguments, expected lists in brackets, as [a,b], and text with blanks in quotes"
        )
    name = got.partition("=")[0]
    tails = {option.rpartition(".")[2].lstrip("-"): option for option in options}
    if (tail := name.lstrip("-")) in tails:  # --epochs for --fit.epochs
        return f"got {name}, which is no option; did you mean {tails[tail]}?"
    return f"got {name}, which is no option; {nearest(name, options, 'see --help')}"


@_rule(r"(?:Subcommand '\w+' does not accept option|.*[Oo]ption) '([\w.]+)'(?: is not accepted.*)?")
def _unknown_key(options: list[str], commands: list[str], got: str) -> str:
    return f"got the key {got!r}, which is no option; {nearest('--' + got, options, 'see --help').replace('--', '')}"


@_rule(r".*invalid choice: '(.*?)' \(choose from .*")
def _unknown_command(options: list[str], commands: list[str], got: str) -> str:
    return f"got the command {got!r}, {nearest(got, commands, 'expected one of ' + ', '.join(commands))}"


@_rule(r'expected "command" to be one of .*')
def _no_command(options: list[str], commands: list[str]) -> str:
    return f"got no command, expected one of {', '.join(commands)}"


@_rule(r"the following arguments are required: (?:\w+\.)?(\w+).*")
def _required(options: list[str], commands: list[str], name: str) -> str:
    return f"got no --{name}, expected it; see --help"


@_rule(r"argument (--\S+): expected one argument")
def _without_value(options: list[str], commands: list[str], name: str) -> str:
    return f"got {name} without a value, expected one after it"


@_rule(r'Parser key "([\w.]+)": (.*)')
def _value(options: list[str], commands: list[str], key: str, why: str) -> str:
    got = re.search(r"Got value: (.*)", why)
    kinds = re.findall(r"Expected an? <class '(\w+)'>", why)
    if got is None or not kinds:
        return f"--{key}: {why}"
    return f"--{key}: got {got[1].split()[0]!r}, expected {' or '.join(dict.fromkeys(KINDS.get(k, k) for k in kinds))}"
