"""The checks of groups of parsed options, which the library has too: `kedit.runtime.option_groups`."""

from kedit.runtime.option_groups import _hints as _hints
from kedit.runtime.option_groups import check_groups as check_groups
from kedit.runtime.option_groups import class_of as class_of
from kedit.runtime.option_groups import editors as editors
