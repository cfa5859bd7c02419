"""From the store to what is read, without torch or Ray: a sweep's report, or the overview of all sweeps."""
