"""The ledger: finished branches, committed by their records, and the storage through which nodes exchange them."""
