"""Generates manual pages, the gRPC reference and shell completion: `make docs`, or build.py FOLDER.

    zfsiloctl.1       from the table of commands (zfsilod/ctl/command_table.py)
    zfsilod.toml.5    from its text here, and the table of keys in configuration.md
    org.zfsilo1.5     from the comments of dbus/org.zfsilo1.xml
    grpc.md           from the comments of proto/zfsilo/v1/*.proto and zfsilod/model/reasons.py
    bash, zsh, fish   completion

Only the standard library is needed.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
sys.path.insert(0, str(PROJECT))

from zfsilod import __version__  # noqa: E402
from zfsilod.ctl.command_table import COMMANDS, COMMON, NOUNS, Argument, Command  # noqa: E402
from zfsilod.ctl.commands import completion  # noqa: E402
from zfsilod.ctl.failures import EXIT_CODES_HELP  # noqa: E402
from zfsilod.model import reasons  # noqa: E402

MAN = ("zfsilod.8", "zfsilo-volume@.service.5")
# The pages for those who use zfsilo; the others are for those who change it.
PAGES = (
    "configuration.md",
    "http.md",
    "kubernetes.md",
    "transports.md",
    "encryption.md",
    "limits.md",
    "two-servers.md",
    "metrics.md",
    "operations.md",
    "changing-things.md",
    "security.md",
    "troubleshooting.md",
)
HEAD = '.TH "{name}" "{section}" "" "zfsilo {version}" "zfsilo"\n'


def main() -> None:
    """Write all files into the folder of the command line."""
    into = Path(sys.argv[1])
    into.mkdir(parents=True, exist_ok=True)
    for name in MAN:
        write(into / name, man_page(name, (HERE / "man" / name).read_text()))
    keys = (HERE / "man/zfsilod.toml.5").read_text().replace("@KEYS@\n", config_keys())
    write(into / "zfsilod.toml.5", man_page("zfsilod.toml.5", keys))
    commands = (HERE / "man/zfsiloctl.1").read_text().replace("@COMMANDS@\n", command_pages())
    commands = commands.replace("@OPTIONS@\n", "".join(map(argument_page, COMMON)))
    commands = commands.replace("@EXIT@\n", exit_codes())
    write(into / "zfsiloctl.1", man_page("zfsiloctl.1", commands))
    write(into / "org.zfsilo1.5", man_page("org.zfsilo1.5", dbus_page()))
    write(into / "grpc.md", grpc_reference())
    for shell, script in completion.SHELLS.items():
        write(into / f"zfsiloctl.{shell}", script())
    described = PROJECT / "proto/zfsilo/v1/openapi.json"
    if described.exists():  # made by proto/build.py, and so before a package is built
        shutil.copy(described, into)
    for page in PAGES:
        shutil.copy(HERE / page, into)


def write(path: Path, text: str) -> None:
    """Write a file."""
    path.write_text(text)


def man_page(name: str, text: str) -> str:
    """Return a page with its title line."""
    stem, _dot, section = name.rpartition(".")
    return HEAD.format(name=stem.upper(), section=section, version=__version__) + text


def roff(text: str) -> str:
    """Return plain text with everything escaped that roff would interpret."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.M)


def code(text: str) -> str:
    """Return Markdown with its code in bold."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(f"\\fB{roff(p)}\\fR" if n % 2 else roff(p) for n, p in enumerate(parts))


# zfsilod.toml(5)


def config_keys() -> str:
    """Return the table of keys in configuration.md as paragraphs."""
    page = (HERE / "configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z]+\.\w+)` \| (.*?) \| (.*?) \|$", page, re.M)
    return "".join(
        f".TP\n\\fB{roff(key)}\\fR\n{code(text)} (default: {code(default)})\n"
        for key, default, text in rows
    )


# zfsiloctl(1)


def command_pages() -> str:
    """Return all commands, by noun."""
    text = ""
    for noun, about in NOUNS.items():
        text += f".SS {roff(noun)}\n{roff(about)}.\n"
        text += "".join(command_page(command) for command in COMMANDS if command.noun == noun)
    return text


def command_page(command: Command) -> str:
    """Return one command with its arguments."""
    operands = [a for a in command.arguments if not a.names[0].startswith("-")]
    synopsis = " ".join(operand(argument) for argument in operands)
    text = f".TP\n\\fBzfsiloctl {roff(command.words)}\\fR {synopsis}\n{roff(command.text)}.\n"
    if command.arguments:
        text += ".RS\n" + "".join(map(argument_page, command.arguments)) + ".RE\n"
    return text


def argument_page(argument: Argument) -> str:
    """Return one argument."""
    text = roff(argument.text + choices(argument))
    if not argument.names[0].startswith("-"):
        return f".TP\n{operand(argument)}\n{text}\n"
    value = f" \\fI{roff(str(argument.options.get('metavar') or 'VALUE'))}\\fR"
    names = ", ".join(f"\\fB{roff(name)}\\fR" for name in argument.names)
    return f".TP\n{names}{value if argument.takes_value else ''}\n{text}\n"


def choices(argument: Argument) -> str:
    """Return the values that are allowed, where only some are."""
    allowed = argument.options.get("choices")
    return f"; one of {', '.join(allowed)}" if isinstance(allowed, tuple) else ""


def operand(argument: Argument) -> str:
    """Return a positional argument, as a synopsis has it."""
    name = f"\\fI{roff(str(argument.options.get('metavar') or argument.names[0].upper()))}\\fR"
    match argument.options.get("nargs"):
        case "?":
            return f"[{name}]"
        case "+":
            return f"{name} ..."
    return name


def exit_codes() -> str:
    """Return the exit codes as paragraphs."""
    codes = re.findall(r"^ +(\d+) +(.*)$", EXIT_CODES_HELP, re.M)
    return "".join(f".TP\n\\fB{number}\\fR\n{roff(text)}\n" for number, text in codes)


# org.zfsilo1(5)


def dbus_page() -> str:
    """Return the contract's comments, each with the signature below it."""
    xml = (PROJECT / "dbus/org.zfsilo1.xml").read_text()
    text = ".SH NAME\norg.zfsilo1 \\- the D\\-Bus interface of zfsilod\n.SH DESCRIPTION\n"
    head = re.search(r"<!--(.*?)-->", xml, re.S)
    assert head is not None
    text += verbatim(head[1])
    for comment, element, name, rest in re.findall(
        r"<!--((?:(?!-->).)*?)-->\s*<(interface|method|signal|property) name=\"([^\"]+)\"([^\n]*)",
        xml[head.end() :],
        re.S,
    ):
        kind = "SH" if element == "interface" else "SS"
        detail = re.search(r'type="([^"]+)"', rest)
        signature = f" ({detail[1]})" if detail else ""
        text += f".{kind} {roff(element)} {roff(name)}{signature}\n{verbatim(comment)}"
    return text + ".SH SEE ALSO\n\\fBzfsilod\\fR(8), \\fBbusctl\\fR(1)\n"


def verbatim(text: str) -> str:
    """Return text whose line breaks are kept."""
    lines = text.strip("\n").rstrip().splitlines()
    common = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
    return ".nf\n" + roff("\n".join(line[common:] for line in lines)) + "\n.fi\n"


# The gRPC reference


def grpc_reference() -> str:
    """Return services, messages, enumerations and error reasons, with their comments."""
    text = "# gRPC reference: zfsilo.v1\n\nMade from the comments of `proto/zfsilo/v1/*.proto`.\n"
    for path in sorted((PROJECT / "proto/zfsilo/v1").glob("*.proto")):
        text += f"\n## {path.name}\n{_proto(path.read_text())}"
    return f"{text}\n## Error reasons\n\nValues of `ErrorInfo.reason`.\n\n{reasons.as_markdown()}"


def _proto(source: str) -> str:
    text, comment = "", ""
    for line in map(str.strip, source.splitlines()):
        declared = re.match(r"(service|message|enum) (\w+) \{", line)
        if line.startswith("//"):
            comment += f"{line[2:].strip()} "
        elif declared:
            text += f"\n### {declared[1]} {declared[2]}\n\n{comment.strip()}\n\n"
            comment = ""
        elif line.startswith(("rpc ", "oneof ")) or re.match(r"[\w.<>, ]+ = \d+", line):
            text += f"* `{line.rstrip(';{ ')}`: {comment.strip()}\n" if comment else f"* `{line}`\n"
            comment = ""
        elif not line:
            comment = ""
    return text


if __name__ == "__main__":
    main()
