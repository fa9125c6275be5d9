"""Make what is documented from what there is: `make docs`, or build.py FOLDER.

    zfsiloctl.1       from the table of commands (zfsilod/ctl/command_table.py)
    zfsilod.toml.5    from its text here, and the README's table of keys
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
PROJECT = HERE.parents[1]
sys.path.insert(0, str(PROJECT))

from zfsilod import __version__  # noqa: E402
from zfsilod.ctl.command_table import COMMANDS, COMMON, NOUNS, Argument, Command  # noqa: E402
from zfsilod.ctl.commands import completion  # noqa: E402
from zfsilod.ctl.failures import EXIT_CODES_HELP  # noqa: E402
from zfsilod.model import reasons  # noqa: E402

MAN = ("zfsilod.8", "zfsilo-volume@.service.5")
HEAD = '.TH "{name}" "{section}" "" "zfsilo {version}" "zfsilo"\n'


def main() -> None:
    """Write everything into a folder."""
    into = Path(sys.argv[1])
    into.mkdir(parents=True, exist_ok=True)
    for name in MAN:
        write(into / name, man_page(name, (HERE / name).read_text()))
    keys = (HERE / "zfsilod.toml.5").read_text().replace("@KEYS@\n", config_keys())
    write(into / "zfsilod.toml.5", man_page("zfsilod.toml.5", keys))
    commands = (HERE / "zfsiloctl.1").read_text().replace("@COMMANDS@\n", command_pages())
    commands = commands.replace("@OPTIONS@\n", "".join(map(argument, COMMON)))
    commands = commands.replace("@EXIT@\n", exit_codes())
    write(into / "zfsiloctl.1", man_page("zfsiloctl.1", commands))
    write(into / "org.zfsilo1.5", man_page("org.zfsilo1.5", dbus_page()))
    write(into / "grpc.md", grpc_reference())
    for shell, script in completion.SHELLS.items():
        write(into / f"zfsiloctl.{shell}", script())
    for page in HERE.glob("*.md"):
        shutil.copy(page, into)


def write(path: Path, text: str) -> None:
    """Write a file."""
    path.write_text(text)


def man_page(name: str, text: str) -> str:
    """Return a page with its head."""
    stem, _dot, section = name.rpartition(".")
    return HEAD.format(name=stem.upper(), section=section, version=__version__) + text


def roff(text: str) -> str:
    """Return plain text as roff takes it: nothing at the beginning of a line is a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.M)


def code(text: str) -> str:
    """Return text of Markdown with its code in bold."""
    parts = re.split(r"`([^`]+)`", text)
    shown = (f"\\fB{roff(p)}\\fR" if n % 2 else roff(p) for n, p in enumerate(parts))
    return "".join(shown)


# zfsilod.toml(5)


def config_keys() -> str:
    """Return the README's table of keys as paragraphs."""
    rows = re.findall(
        r"^\| `([a-z]+\.\w+)` \| (.*?) \| (.*?) \|$", (PROJECT / "README.md").read_text(), re.M
    )
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
        text += "".join(command(each) for each in COMMANDS if each.noun == noun)
    return text


def command(each: Command) -> str:
    """Return one command with its arguments."""
    places = [a for a in each.arguments if not a.names[0].startswith("-")]
    shown = " ".join(_place(a) for a in places)
    text = f".TP\n\\fBzfsiloctl {roff(each.words)}\\fR {shown}\n{roff(each.text)}.\n"
    if each.arguments:
        text += ".RS\n" + "".join(map(argument, each.arguments)) + ".RE\n"
    return text


def argument(each: Argument) -> str:
    """Return one argument."""
    text = roff(each.text + _choices(each))
    if not each.names[0].startswith("-"):
        return f".TP\n{_place(each)}\n{text}\n"
    value = f" \\fI{roff(str(each.options.get('metavar') or 'VALUE'))}\\fR"
    names = ", ".join(f"\\fB{roff(name)}\\fR" for name in each.names)
    return f".TP\n{names}{value if each.takes_value else ''}\n{text}\n"


def _choices(each: Argument) -> str:
    """Return the values that are allowed, where only some are."""
    choices = each.options.get("choices")
    return f"; one of {', '.join(choices)}" if isinstance(choices, tuple) else ""


def _place(each: Argument) -> str:
    name = f"\\fI{roff(str(each.options.get('metavar') or each.names[0].upper()))}\\fR"
    match each.options.get("nargs"):
        case "?":
            return f"[{name}]"
        case "+":
            return f"{name} ..."
    return name


def exit_codes() -> str:
    """Return the exit codes as paragraphs."""
    found = re.findall(r"^ +(\d+) +(.*)$", EXIT_CODES_HELP, re.M)
    return "".join(f".TP\n\\fB{number}\\fR\n{roff(text)}\n" for number, text in found)


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
        xml[head.end() :], re.S,
    ):  # fmt: skip
        kind = "SH" if element == "interface" else "SS"
        detail = re.search(r'type="([^"]+)"', rest)
        shown = f" ({detail[1]})" if detail else ""
        text += f".{kind} {roff(element)} {roff(name)}{shown}\n{verbatim(comment)}"
    return text + ".SH SEE ALSO\n\\fBzfsilod\\fR(8), \\fBbusctl\\fR(1)\n"


def verbatim(text: str) -> str:
    """Return text whose lines stay as they are."""
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
