"""`zfsiloctl completion`: scripts for bash, zsh and fish, generated from the table of commands.

A script contains all words and options. It runs zfsiloctl only for the names of volumes, hosts and
other resources.
"""

from __future__ import annotations

from zfsilod.ctl.command_table import COMMANDS, COMMON, NOUNS, Argument, Command
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable

LISTS = {
    "volumes": "volume list -q",
    "snapshots": "snapshot list -q",
    "groups": "snapshot-group list -q",
    "policies": "schedule list -q",
    "replication-policies": "replication list -q",
    "hosts": "host list -q",
    "servers": "server list -q",
    "operations": "operation list -q --running",
    "all-operations": "operation list -q",
    "tokens": "token list -q",
    "orphans": "orphan list -q",
    "zvols": "orphan list -q | grep zvol/ | cut -d/ -f2-",
    "mounts": r"volume list --json | grep \"path\": | cut -d\" -f4",
}
REMOTE = "remote-volumes"  # of all servers that this host has joined


def completion(args: Namespace) -> None:
    """Print the script for a shell."""
    print(SHELLS[args.shell](), end="")


def bash() -> str:
    """Return the script for bash."""
    return f'# bash completion of zfsiloctl: eval "$(zfsiloctl completion bash)"\n{core()}{BASH}'


def zsh() -> str:
    """Return the script for zsh."""
    return f"#compdef zfsiloctl\n# source <(zfsiloctl completion zsh)\n{core()}{ZSH}"


def core() -> str:
    """Return the functions that bash and zsh share; they print the candidates for a word."""
    verbs = {noun: " ".join(_verbs(noun)) for noun in NOUNS if _verbs(noun)}
    return CORE.format(
        nouns=" ".join(NOUNS),
        common=" ".join(_options(COMMON)),
        valued="|".join(_valued()),
        with_verbs="|".join(verbs),
        cases="\n".join(_case(command) for command in COMMANDS),
        verbs="\n".join(f"    {noun}) offer='{words}' ;;" for noun, words in verbs.items()),
    )


# The output FILES stands for file names.
CORE = """\
_zfsiloctl_ask() {{
  zfsiloctl ${{remote:+-H}} ${{remote:+"$remote"}} "$@" 2>/dev/null
}}

_zfsiloctl_remote() {{
  local server
  for server in $(zfsiloctl server list -q 2>/dev/null); do
    zfsiloctl -H "$server" --timeout 3 volume list -q 2>/dev/null
  done
}}

# The word to complete, then the words in front of it.
_zfsiloctl_offer() {{
  local now=$1 noun='' verb='' place=0 word='' offer='' flags='{common}' open='' remote=''
  shift
  for word in "$@"; do
    if [[ -n $open ]]; then
      case $open in -H|--remote) remote=$word ;; esac
      open=''
    elif [[ $word == -* ]]; then
      case $word in {valued}) open=$word ;; esac
    elif [[ -z $noun ]]; then
      noun=$word
    elif [[ -n $verb ]]; then
      place=$((place + 1))
    else
      case $noun in
        {with_verbs}) verb=$word ;;
        *) place=$((place + 1)) ;;
      esac
    fi
  done
  case "$noun${{verb:+ $verb}}" in
    '') offer='{nouns}' ;;
{verbs}
{cases}
  esac
  case $open in
    -H|--remote) remote='' offer=$(_zfsiloctl_ask server list -q) ;;
    --socket) offer=FILES ;;
    --timeout) offer='' ;;
    '') if [[ $now == -* ]]; then offer=$flags; fi ;;
  esac
  printf '%s\\n' "$offer"
}}
"""

BASH = """\

_zfsiloctl() {
  local now=${COMP_WORDS[COMP_CWORD]} offer
  offer=$(_zfsiloctl_offer "$now" "${COMP_WORDS[@]:1:COMP_CWORD-1}")
  if [[ $offer == FILES ]]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$now")
  else
    mapfile -t COMPREPLY < <(compgen -W "$offer" -- "$now")
  fi
}
complete -F _zfsiloctl zfsiloctl
"""

ZSH = """\

_zfsiloctl() {
  local offer
  offer=$(_zfsiloctl_offer "${words[CURRENT]}" "${(@)words[2,CURRENT-1]}")
  if [[ $offer == FILES ]]; then
    _files
  else
    compadd -- ${=offer}
  fi
}
compdef _zfsiloctl zfsiloctl
"""


def _case(command: Command) -> str:
    """Return the branch for the arguments of one command."""
    lines = [f"    '{command.words}')"]
    flags = _options(command.arguments)
    if flags:
        lines.append(f'      flags="$flags {" ".join(flags)}"')
    # The key is "option:place"; behind an option that takes a value the place does not matter.
    keys = [
        ("|".join(f"{name}:*" for name in argument.names), argument)
        for argument in command.arguments
        if _is_option(argument)
    ]
    keys += [(f":{place}", argument) for place, argument in enumerate(_positionals(command))]
    branches = [
        f"        {key}) offer={_offer(argument)} ;;" for key, argument in keys if argument.offer
    ]
    if branches:
        lines += ['      case "$open:$place" in', *branches, "      esac"]
    return "\n".join([*lines, "      ;;"])


def _offer(argument: Argument) -> str:
    if argument.offer == "files":
        return "FILES"
    if isinstance(argument.offer, str):
        return f"$({_asked('_zfsiloctl', argument.offer)})"
    return f"'{' '.join(argument.offer)}'"


def _asked(prefix: str, offer: str) -> str:
    """Return the shell command that prints a list; the prefix is that of the functions."""
    return f"{prefix}_remote" if offer == REMOTE else f"{prefix}_ask {LISTS[offer]}"


def fish() -> str:
    """Return the script for fish."""
    lines = [FISH.format(valued=" ".join(_valued()))]
    lines += [_fish_word("__zfsiloctl_in 0", noun, text) for noun, text in NOUNS.items()]
    for command in COMMANDS:
        if command.verb:
            lines.append(_fish_word(f"__zfsiloctl_in 0 {command.noun}", command.verb, command.text))
        lines += [
            _fish_option(f"__zfsiloctl_in -1 {command.words}", argument)
            for argument in command.arguments
            if _is_option(argument)
        ]
        lines += [
            f"complete -c zfsiloctl -n '__zfsiloctl_in {place} {command.words}'"
            f"{_fish_offer(argument)}"
            for place, argument in enumerate(_positionals(command))
            if argument.offer
        ]
    lines += [_fish_option("true", argument) for argument in COMMON]
    return "\n".join(lines) + "\n"


FISH = """\
# fish completion of zfsiloctl: zfsiloctl completion fish | source
complete -c zfsiloctl -f
function __zfsiloctl_in -d 'so many words (-1: any number) stand behind these'
    set -l words
    set -l skip 0
    set -l tokens (commandline -opc)
    for token in $tokens[2..]
        if test $skip = 1
            set skip 0
        else if contains -- $token {valued}
            set skip 1
        else if not string match -q -- '-*' $token
            set -a words $token
        end
    end
    set -l wanted $argv[2..]
    set -l depth (count $wanted)
    set -l more (math (count $words) - $depth)
    test $more -ge 0; or return 1
    test $argv[1] = -1; or test $more = $argv[1]; or return 1
    test $depth = 0; or test "$words[1..$depth]" = "$wanted"
end
function __zfsiloctl_ask -d 'names, from the server that -H names'
    set -l tokens (commandline -opc)
    set -l remote
    for at in (seq 2 (count $tokens))
        contains -- $tokens[$at] -H --remote; and set remote -H $tokens[(math $at + 1)]
    end
    zfsiloctl $remote $argv
end
function __zfsiloctl_remote -d 'volumes of all servers'
    for server in (zfsiloctl server list -q)
        zfsiloctl -H $server --timeout 3 volume list -q
    end
end
"""


def _fish_word(condition: str, word: str, text: str) -> str:
    return f"complete -c zfsiloctl -n '{condition}' -a {word} -d {_fish_quoted(text)}"


def _fish_option(condition: str, argument: Argument) -> str:
    line = f"complete -c zfsiloctl -n '{condition}'"
    for name in argument.names:
        line += f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
    if argument.takes_value:
        line += " -r" if argument.offer == "files" else " -x"
    return f"{line}{_fish_offer(argument)} -d {_fish_quoted(argument.text)}"


def _fish_offer(argument: Argument) -> str:
    if argument.offer == "files":
        return " -F"
    if isinstance(argument.offer, str):
        asked = _asked("__zfsiloctl", argument.offer)
        if argument.offer == "servers":
            asked = f"zfsiloctl {LISTS['servers']}"
        return f" -a '({asked} 2>/dev/null)'"
    return f" -a '{' '.join(argument.offer)}'" if argument.offer else ""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _verbs(noun: str) -> list[str]:
    return [command.verb for command in COMMANDS if command.noun == noun and command.verb]


def _options(arguments: Iterable[Argument]) -> list[str]:
    return [name for argument in arguments if _is_option(argument) for name in argument.names]


def _positionals(command: Command) -> list[Argument]:
    return [argument for argument in command.arguments if not _is_option(argument)]


def _is_option(argument: Argument) -> bool:
    return argument.names[0].startswith("-")


def _valued() -> list[str]:
    """Return all options that take a value."""
    arguments = [*COMMON, *(argument for command in COMMANDS for argument in command.arguments)]
    valued = (argument for argument in arguments if argument.takes_value)
    return list(dict.fromkeys(_options(valued)))


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
