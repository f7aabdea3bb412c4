"""The packaged ensemble: a fused system as one folder, which scores clips without the run that made it."""
