"""Python runs this when it starts in a process that tests on Model Runner V2 have spawned."""

from tests.runner_v2 import use_runner_v2

use_runner_v2()
