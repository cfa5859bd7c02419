"""The published setups whose tables and conclusions a report can repeat."""
