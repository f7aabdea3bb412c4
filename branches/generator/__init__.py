"""Generated log-mels of rare conditions: a flow-matching model, guided by reference clips, whose samples are checked."""
