"""What the fork server imports: the heavy modules, once. Imported nowhere else, since it changes a signal's handler."""

import signal

from vitlab.study import cell
from vitlab.study.provenance import code_fingerprint, code_patch, code_version
from vitlab.train.loop import fit

for known_from_here_on in (code_fingerprint, code_patch, code_version):  # the cells run the code that is loaded here
    known_from_here_on()

# A signal to the whole process group (a terminal's, a batch system's) must reach the cells, which save, but leave the
# server alive: it is the one that tells the controller how they ended.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)

__all__ = ["cell", "fit"]
