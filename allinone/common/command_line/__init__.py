"""One way to read a command line: dataclasses, tyro, and helpful errors.

Every command describes its options as a frozen dataclass, one docstring per field, and calls
`parse`. Precedence: the defaults of the dataclass (or of a recipe), then --config FILE, then the
flags. Only the standard library is imported at the top of these modules, and tyro when options are
read, so that --help answers at once.
"""

from allinone.common.command_line.choices import Choice, choose, pick
from allinone.common.command_line.completion import CompletionRequest, completing
from allinone.common.command_line.config_file import config_from_file, to_yaml
from allinone.common.command_line.messages import show_program_as
from allinone.common.command_line.option_tree import options_of
from allinone.common.command_line.parser import parse
from allinone.common.command_line.run import run_command

__all__ = [
    "Choice",
    "CompletionRequest",
    "choose",
    "completing",
    "config_from_file",
    "options_of",
    "parse",
    "pick",
    "run_command",
    "show_program_as",
    "to_yaml",
]
