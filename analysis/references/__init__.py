"""The reference implementations whose reported results a report can repeat beside its own."""
