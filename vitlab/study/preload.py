"""What the fork server imports: the heavy modules, once. Imported nowhere else, since it changes a signal's handler."""

import signal

# A signal to the whole process group (a terminal's, a batch system's) must reach the cells, which save, but leave the
# server alive: it is the one that tells the controller how they ended. Before the imports, which take seconds.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)

from vitlab.study import cell  # noqa: E402
from vitlab.study.provenance import code_fingerprint, code_patch, code_version  # noqa: E402
from vitlab.train.loop import fit  # noqa: E402

for known_from_here_on in (code_fingerprint, code_patch, code_version):  # the cells run the code that is loaded here
    known_from_here_on()

__all__ = ["cell", "fit"]
