"""The ledger: finished work as whole folders, exchanged by nodes and held by one driver at a time."""
