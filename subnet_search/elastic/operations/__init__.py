"""The graph form of a network: what torch.export sees of it, followed operator by operator and written as a program."""
