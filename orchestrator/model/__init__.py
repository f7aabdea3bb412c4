"""The packaged ensemble: a fused system as one folder, which scores clips without the run that made it."""

import os

# Read when torch is loaded. Threads that spin while they wait take a clip's score from 0.03 to 0.8 s beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
