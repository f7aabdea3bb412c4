import torch

torch.set_num_threads(1)  # tiny networks gain nothing from threads, which on a busy machine wait for each other
